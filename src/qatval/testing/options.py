"""The options that the pytest plugin adds, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from qatval.core import presets
from qatval.core.option_types import positive, seeds
from qatval.run.study.launching import LAUNCHERS


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
        help="runs at a time on one GPU, under -n or --launcher (default: 1)",
    )
    group.addoption(
        "--launcher",
        choices=LAUNCHERS,
        help="run the scenarios as a study, placed on this machine, a Slurm cluster or a Ray "
        "cluster; tests wait for their runs (default: each in the process of its test)",
    )
    group.addoption(
        "--launcher-config",
        type=Path,
        metavar="FILE",
        help="with --launcher: what a run takes and a cluster is told, the tables [resources], "
        "[slurm] and [ray] of a study file",
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


def refuse_unfit(option: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        pytest.UsageError: Saying which, and what to do.
    """
    if option.launcher is None:
        if option.launcher_config is not None:
            raise pytest.UsageError("--launcher-config is for --launcher local, slurm or ray")
        return
    if getattr(option, "tx", None):  # of xdist, which has settled -n by now
        raise pytest.UsageError(
            "-n and --launcher both run scenarios side by side: leave one of them out"
        )
    if option.launcher != "local" and option.run_root is None:
        raise pytest.UsageError(
            f"--launcher {option.launcher} needs --run-root DIR, in a folder that all machines of "
            "the cluster share"
        )
    if option.device not in (None, "cpu"):
        raise pytest.UsageError(
            f"--device {option.device}: with --launcher give cpu or nothing; a run has the GPUs "
            "that it is placed on, as many as [resources] of --launcher-config says"
        )
