"""How the jobs of a study stand, from files alone: whoever looks, and wherever."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qatval.core.summary import SUMMARY_NAME
from qatval.run.folder import is_finished
from qatval.run.study.plan import Job, Plan
from qatval.run.study.state import SILENT_S, JobState, read_state
from qatval.run.workspace import is_interrupted

Word = Literal["waiting", "running", "silent", "interrupted", "failed", "done"]


@dataclass(frozen=True)
class Entry:
    """How a job stands.

    Attributes:
        job: The job.
        word: "silent" is one that says "running" and has not written for long, or whose process
            is gone; "waiting" one that nobody has begun,
            or whose runs were removed.
        state: What its last process said of it, None before the first.
        written: When that was, in seconds since 1970.
    """

    job: Job
    word: Word
    state: JobState | None = None
    written: float = 0.0


def entries(plan: Plan, out: Path) -> list[Entry]:
    """Return how the jobs of a plan stand that is carried out in a folder, in their order."""
    return [entry(job, out) for job in plan.jobs]


def entry(job: Job, out: Path) -> Entry:
    """Return how one job stands.

    Its run roots decide where its state does not say that it is done: a process that was killed
    between its last result and its last word has done its job. What is done waits again when a run
    root of it was removed.
    """
    state, written = read_state(job.folder(out))
    if state is not None and state.standing == "done":
        roots = job.run_roots(out).values()
        kept = all((root / SUMMARY_NAME).exists() for root in roots)  # reading them takes longer
        return Entry(job, "done" if kept else "waiting", state, written)
    if state is not None and _at_work(state, written):
        return Entry(job, "running", state, written)
    if finished(job, out):
        return Entry(job, "done", state, written)
    if state is None:
        return Entry(job, "waiting")
    standing = "silent" if state.standing == "running" else state.standing
    return Entry(job, standing, state, written)


def finished(job: Job, out: Path) -> bool:
    """Whether every run of a job got to its end."""
    roots = job.run_roots(out).values()
    return all(map(is_finished, roots)) and not is_interrupted(job.run_root(out))


def _at_work(state: JobState, written: float) -> bool:
    """Whether a process may be at work on a job; their clocks agree to half a minute."""
    if state.standing != "running" or abs(time.time() - written) > SILENT_S:
        return False
    return state.host != socket.gethostname() or _exists(state.pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
