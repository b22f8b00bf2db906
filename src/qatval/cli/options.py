"""Options that several commands declare alike."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from qatval.core.presets import DEFAULT_COCO_ROOT, default_coco_root, variant_names

_SHARED: dict[str, dict[str, Any]] = {
    "run_roots": {
        "nargs": "+",
        "type": Path,
        "metavar": "RUN_ROOT",
        "help": "run root, or folder of runs",
    },
    "--cache-dir": {"type": Path, "metavar": "DIR", "help": "where subsets are kept"},
    "--coco-root": {
        "type": Path,
        "metavar": "DIR",
        "default": default_coco_root(),
        "help": f"dataset in COCO 2017's layout (default: {DEFAULT_COCO_ROOT})",
    },
    "--count-incomplete": {
        "action": "store_true",
        "help": "let an incomplete ema+qc run close the gate (default: it counts neither way)",
    },
    "--variant": {
        "default": "yolo10n",
        "choices": variant_names(),
        "help": "size of the model (default: %(default)s)",
    },
}


def add_shared(parser: ArgumentParser, *names: str) -> None:
    """Add options to a command, or what it is about, by name."""
    for name in names:
        parser.add_argument(name, **_SHARED[name])
