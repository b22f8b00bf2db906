"""Processes of attempts: how they are started, waited for, ended, and what is said of their end."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping

from qatval.core.interruption import EXIT_CODE
from qatval.run.study.engines import PARENT, Attempt

PATIENCE_S = 60.0
"""Seconds that a process has to save its state before it is killed."""

_SIGNALS = {
    signal.SIGKILL: "killed by SIGKILL, as the system does where memory has run out",
    signal.SIGSEGV: "crashed (SIGSEGV), which is a defect of a library or of the machine",
    signal.SIGBUS: "crashed (SIGBUS), as where a disk or /dev/shm is full",
    signal.SIGABRT: "aborted (SIGABRT), as libraries do that cannot go on",
}


def start(
    attempt: Attempt, gpus: Mapping[str, str] | None = None, *, own_session: bool = True
) -> subprocess.Popen[bytes]:
    """Start the process of an attempt; its output goes on in the log.

    Args:
        attempt: What to start.
        gpus: Variables that say which GPUs it sees, beside those of the attempt.
        own_session: Whether signals to this process's group, as a terminal's Ctrl-C, pass it by.

    Raises:
        OSError: It cannot be started.
    """
    told = {**attempt.environment, **(gpus or {}), PARENT: str(os.getpid())}
    with attempt.log.open("ab") as log:
        return subprocess.Popen(
            attempt.command,
            cwd=attempt.directory,
            env={**os.environ, **told},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=own_session,
        )


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended; it keeps its number, which no other session gets meanwhile."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, how) is not None


def wait(process: subprocess.Popen[bytes], seconds: float = math.inf, *, poll_s: float) -> None:
    """Wait for the end of a process, for some seconds at most; it keeps its number."""
    until = time.monotonic() + seconds
    while not has_ended(process) and time.monotonic() < until:
        time.sleep(poll_s)


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Have a process save what it has and end, if `end` has not been called for it."""
    os.kill(process.pid, signal.SIGTERM)  # not its own method, which may wait for it


def end(process: subprocess.Popen[bytes]) -> str:
    """Kill what is left of a process and of those it has started; return how it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return _words(process.wait())


def _words(code: int) -> str:
    if code >= 0:
        return {0: "ended", EXIT_CODE: "interrupted"}.get(code, f"ended with exit code {code}")
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"killed by signal {-code}"
    return _SIGNALS.get(number, f"killed by {number.name}")
