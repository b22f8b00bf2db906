"""What Slurm's queue says of tasks: one question for all of them, and never an answer guessed.

``squeue`` alone is asked, which takes no accounting database. The controller of a cluster remembers
what has ended for ``MinJobAge``, five minutes unless it is configured otherwise.
"""

from __future__ import annotations

import logging
import math
import re
import subprocess
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

EVERY_S = 5.0
"""Seconds from one question to the next."""
_PATIENCE_S = 30.0  # for an answer
_COMMAND = ("squeue", "--noheader", "--array", "--states=all")
_FORMAT = "JobArrayID:|,State:|,exit_code:|,Reason:|"
_LINE = re.compile(r"(\d+(?:_\d+)?)\|([A-Z_]+)\|(\d+)\|(.*)\|")
_FORGOTTEN = "Invalid job id"  # what it says, and fails, when asked for nothing but one such job

# Other words are of tasks that wait, run, or come back to the queue.
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"}
_ENDED |= {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED"}
# Reasons to wait that go away by themselves; any other may want somebody's hand.
_ORDINARY = {"None", "Priority", "Resources", "BeginTime", "Cleaning", "JobArrayTaskLimit"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A task as the queue has it.

    Attributes:
        state: In Slurm's word, e.g. "PENDING".
        status: As ``wait`` returns it: the exit code times 256, or the signal that ended it.
        reason: Why it waits, or has failed; "None" without one.
    """

    state: str
    status: int
    reason: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is to come."""
        return self.state in _ENDED

    def __str__(self) -> str:
        code = self.status >> 8
        return f"{self.state}, exit code {code}" if code else self.state


class Queue:
    """Asks every few seconds, and does not wait for the answer."""

    def __init__(self) -> None:
        """Have asked nothing yet."""
        self._thread = ThreadPoolExecutor(1)
        self._answer: Future[subprocess.CompletedProcess[str]] | None = None
        self._asks_at = -math.inf
        self._is_failing = False
        self._told: set[str] = set()

    def look(self, tasks: Collection[str]) -> dict[str, Task] | None:
        """Return what the queue knows of tasks, once for each answer; None while there is none.

        Args:
            tasks: Their ids, e.g. "12_3" of the array 12. Others of the same arrays come as well.
        """
        if self._answer is None and tasks and time.monotonic() >= self._asks_at:
            self._asks_at = time.monotonic() + EVERY_S
            self._answer = self._thread.submit(_ask, tasks)
        if self._answer is None or not self._answer.done():
            return None
        answer, self._answer = self._answer, None
        try:
            known = _read(answer.result())
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            if not self._is_failing:
                _log.warning("squeue: %s; jobs go on, it is asked again", error)
            self._is_failing = True
            return None
        self._is_failing = False
        self._tell_reasons(known)
        return known

    def _tell_reasons(self, known: Mapping[str, Task]) -> None:
        for name, task in known.items():
            if task.state == "PENDING" and task.reason not in _ORDINARY | self._told:
                self._told.add(task.reason)
                _log.warning(
                    "Slurm lets %s wait, perhaps others too (%s): see 'scontrol show job %s'",
                    name,
                    task.reason,
                    name,
                )


def _ask(tasks: Collection[str]) -> subprocess.CompletedProcess[str]:
    arrays = sorted({task.partition("_")[0] for task in tasks}, key=int)
    return subprocess.run(
        [*_COMMAND, f"--Format={_FORMAT}", f"--jobs={','.join(arrays)}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PATIENCE_S,
        check=False,
    )


def _read(answer: subprocess.CompletedProcess[str]) -> dict[str, Task]:
    if answer.returncode and _FORGOTTEN not in answer.stderr:
        said = answer.stderr.strip().splitlines() or [f"it ends with {answer.returncode}"]
        raise ValueError(said[-1])
    known = {}
    for line in filter(None, map(str.strip, answer.stdout.splitlines())):
        found = _LINE.fullmatch(line)
        if found is None:  # nor can the rest be trusted to be whole
            raise ValueError(f"it says {line[:80]!r}")
        known[found[1]] = Task(found[2], int(found[3]), found[4])
    return known
