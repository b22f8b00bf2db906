"""For sessions with --launcher that start no process: an engine that fetches runs from a folder.

A session's conftest imports the hooks from here. See `stored_runs` for sessions without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qatval.core.summary import load_summary, write_summary
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.plan import read_plan
from qatval.run.study.state import JobState, write_state
from qatval.testing import launching

STORED = "stored"
CALLS = "calls.txt"


class StoredRuns:
    """Ends one attempt after another, each with the runs that are stored for its job."""

    def __init__(self, resources: Resources, session: Path) -> None:
        self.resources = resources
        self._session = session
        self._attempts: list[Attempt] = []

    def place(self, attempts: Sequence[Attempt]) -> None:
        self._attempts += attempts
        with (self._session / CALLS).open("a") as stream:
            stream.write("".join(f"{attempt.job}\n" for attempt in attempts))

    def held(self) -> set[str]:
        return {attempt.job for attempt in self._attempts}

    def ended(self) -> dict[str, str]:
        if not self._attempts:
            return {}
        attempt = self._attempts.pop(0)
        out = Path(attempt.command[-2])
        job = next(job for job in read_plan(out).jobs if job.name == attempt.job)
        error = None
        for method, root in job.run_roots(out).items():
            stored = load_summary(self._session / STORED / f"{method}-{job.seed}")
            write_summary(root, stored)
            error = stored.error.message if stored.error else None
        standing = "failed" if error else "done"
        write_state(job.folder(out), JobState(standing, 1, "node3", 1, "", error=error))
        return {attempt.job: "ended"}

    def stop(self) -> str:
        return f"{len(self._attempts)} stopped"


def pytest_configure(config: pytest.Config) -> None:
    """Let every launcher be that engine."""
    config.stash[_BEFORE] = launching.launched
    launching.launched = lambda _, resources, *__: (StoredRuns(resources, config.rootpath), 1)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the engines back."""
    launching.launched = config.stash.get(_BEFORE, launching.launched)  # a session may not begin


_BEFORE = pytest.StashKey[Any]()
