"""The options that the pytest plugin adds."""

from __future__ import annotations

from pathlib import Path

import pytest

from qatval.core import presets
from qatval.core.option_types import positive, seeds


def add_options(parser: pytest.Parser) -> None:
    """Add the options of the validation, one group."""
    group = parser.getgroup("qatval", "validation of quantization-aware training (qatval)")
    group.addoption(
        "--profile",
        choices=presets.profile_names(),
        default="smoke",
        help="profile of the scenarios (default: smoke)",
    )
    group.addoption(
        "--seeds", type=seeds, default=(0, 1), metavar="N,N", help="seeds (default: 0,1)"
    )
    group.addoption(
        "--coco-root",
        type=Path,
        default=presets.default_coco_root(),
        metavar="DIR",
        help=f"dataset in COCO 2017's layout (default: {presets.DEFAULT_COCO_ROOT})",
    )
    group.addoption(
        "--device", metavar="D", help="device of the COCO scenarios (default: GPUs in turn)"
    )
    group.addoption(
        "--runs-per-gpu",
        type=positive,
        default=1,
        metavar="N",
        help="runs at a time on one GPU, under -n (default: 1)",
    )
    group.addoption(
        "--run-root",
        type=Path,
        metavar="DIR",
        help="keep the session's runs in a new folder below DIR, where the same command goes on "
        "with a session that was killed (default: pytest's temporary one)",
    )
    group.addoption(
        "--gate-root", type=Path, metavar="DIR", help="runs that open the gate of yolo10m"
    )
    group.addoption(
        "--strict-resources",
        action="store_true",
        help="fail scenarios whose GPU, dataset or checkpoint is missing instead of skipping them",
    )
    group.addoption(
        "--with-controls",
        action="store_true",
        help="run the controls as well: the untrained model, the same training in FP32, averaged "
        "and corrected alike, re-estimated BatchNorm statistics in the place of QC",
    )
    group.addoption(
        "--update-thresholds",
        action="store_true",
        help="rewrite the reference values from this session's runs and show the difference",
    )
