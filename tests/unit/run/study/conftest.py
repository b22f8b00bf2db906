"""Studies of two jobs that nobody trains: their files are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qatval.core.summary import write_summary
from qatval.run.study.engines import Resources
from qatval.run.study.plan import Job, Plan
from qatval.run.study.state import JobState, write_state
from qatval.testing import build_summary


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    jobs = tuple(
        Job(f"tiny/seed{seed}/baseline", ("baseline", "ema"), seed, {"variant": "yolo10n"})
        for seed in range(2)
    )
    return Plan("2026-01-01T00:00:00+00:00", str(tmp_path), Resources(), jobs)


@pytest.fixture
def say(tmp_path: Path) -> Callable[..., JobState]:
    """Write the state of a job, of a process on another machine unless told otherwise."""

    def write(job: Job, standing: Any = "running", **fields: Any) -> JobState:
        known = {"attempt": 1, "host": "elsewhere", "pid": 1, "started_at": "2026-01-01T00:00:00Z"}
        state = JobState(**{"standing": standing, **known, **fields})
        write_state(job.folder(tmp_path), state)
        return state

    return write


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., None]:
    """Write the run roots of a job, all of them or those of some methods."""

    def write(job: Job, *methods: str) -> None:
        for method in methods or job.methods:
            write_summary(job.run_roots(tmp_path)[method], build_summary(method, job.seed))

    return write
