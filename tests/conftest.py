"""The builders of `qatval.testing` as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qatval.analysis.thresholds import Thresholds
from qatval.core.summary import RunSummary, write_summary
from qatval.testing import build_summary, build_thresholds, reduced_to_required


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., RunSummary]:
    return build_summary


@pytest.fixture(scope="session")
def required_only() -> Callable[[RunSummary], RunSummary]:
    return reduced_to_required


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Thresholds]:
    return build_thresholds


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run root below `tmp_path / "runs"`; keywords go to the builder."""

    def write(name: str, summary: RunSummary | None = None, **more: Any) -> Path:
        root = tmp_path / "runs" / name
        write_summary(root, summary or build_summary(**more))
        return root

    return write
