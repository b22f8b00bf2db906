"""Where photographs are: a folder as QATVAL_REAL_DATA names one."""

from __future__ import annotations

import os
from pathlib import Path

from measure import REPOSITORY
from qatval.testing.scenarios import REAL_DATA_VARIABLE, RealData


def real_data() -> Path:
    """Return the folder with photographs: the one beside the checkout, or as the variable says."""
    beside = REPOSITORY.parent / "shared" / "real"
    return Path(os.environ.get(REAL_DATA_VARIABLE, beside))


def photographs(folder: Path) -> tuple[Path, Path]:
    """Return the dataset and the checkpoint in a folder as QATVAL_REAL_DATA names one.

    Raises:
        SystemExit: If one is missing, saying which.
    """
    data = RealData(folder.resolve())
    if missing := data.missing("yolo10n"):
        raise SystemExit(missing[0])
    checkpoint = data.checkpoint("yolo10n")
    assert data.coco_root is not None
    assert checkpoint is not None
    return data.coco_root, checkpoint
