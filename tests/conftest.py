"""Run folders for tests of what reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qatval.core.summary import RunSummary, write_summary
from qatval.testing import build_summary


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run root below `tmp_path / "runs"`; keywords go to the builder."""

    def write(name: str, summary: RunSummary | None = None, **more: Any) -> Path:
        root = tmp_path / "runs" / name
        write_summary(root, summary or build_summary(**more))
        return root

    return write
