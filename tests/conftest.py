"""Run folders for tests of what reads them, and signals for tests of what heeds them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qatval.core import interruption
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


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Heed signals that nohup, or a shell's ``&``, has put out of the session's reach."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)  # a process that is started inherits that
    yield
    interruption._received = None  # a command that has heeded one ends, and a session goes on
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
