"""How a job stands, in one small file that its process writes and everybody may read.

Where a job is given up because its processes were lost again and again, the controller does.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import msgspec

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, read_regular

STATE_NAME = "state.json"
BEAT_S = 5.0
"""Seconds after which a process that is alive has written its state again."""
SILENT_S = 60.0
"""Seconds without a new state after which nobody is taken to be at work any more."""

_LARGEST = 100_000  # bytes

Standing = Literal["running", "done", "failed", "interrupted"]


class JobState(msgspec.Struct, omit_defaults=True):
    """How a job stands, as its last process said.

    Attributes:
        standing: "running" until it says otherwise, so also of a process that was killed: whether
            it is at work shows in when the file was last written. "failed" is what another attempt
            would not change by itself, "interrupted" what one goes on with.
        attempt: Number of the attempt, from 1.
        host, pid: Where it is, or was.
        started_at: When the attempt began, ISO 8601.
        device: What computes, e.g. "cpu" or the name of the GPU.
        stage: Of the run, in the words of its summary.
        epoch, epochs: Of the training that is under way; 0 before the first.
        done: Share of the stage's steps, 0..1.
        value: Last mAP 50-95 that was measured.
        left_s: Seconds that the stage will still take, as far as it can tell.
        seconds: That attempts have taken so far, all of them together.
        error: Why it failed, in a line.
    """

    standing: Standing
    attempt: int
    host: str
    pid: int
    started_at: str
    device: str | None = None
    stage: str | None = None
    epoch: int = 0
    epochs: int | None = None
    done: float | None = None
    value: float | None = None
    left_s: float | None = None
    seconds: float = 0.0
    error: str | None = None


def write_state(folder: Path, state: JobState) -> None:
    """Write how a job stands to its folder.

    Raises:
        QatvalError: If the folder cannot be written to.
    """
    content = msgspec.json.format(msgspec.json.encode(state), indent=2)
    atomic_write(folder / STATE_NAME, content + b"\n")


def read_state(folder: Path) -> tuple[JobState | None, float]:
    """Return how a job stands by its folder, and when that was written.

    Returns:
        The state, None where there is none that can be read; seconds since 1970, 0 without it.
    """
    file = folder / STATE_NAME
    with contextlib.suppress(OSError, QatvalError, ValueError):  # msgspec's own are the latter
        written = file.stat().st_mtime
        content = read_regular(file, _LARGEST, expected="the state of a job")
        return msgspec.json.decode(content, type=JobState), written
    return None, 0.0
