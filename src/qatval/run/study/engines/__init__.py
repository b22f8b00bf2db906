"""Where attempts at jobs run: processes of this machine, a Slurm cluster, a Ray cluster.

An engine places processes and says when they have ended. It knows nothing of what they do: whether
a job is done, may go on or has failed is read from its files by the controller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

PARENT = "QATVAL_PARENT"
"""Variable by which an attempt's process knows the number of the one that started it.

Asked for by itself it may get the number of another already: that of whoever adopts orphans.
"""


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one job takes of a machine.

    Attributes:
        threads: Processor threads that compute. Results depend on their number in the last bits.
        gpus: Of them the job has a share of one, e.g. 0.5, or whole ones; 0 for the CPU.
        memory_gb: What a scheduler reserves, None for its default.
        minutes: After which a scheduler may end an attempt; the next one goes on from there.
    """

    threads: int = 1
    gpus: float = 0.0
    memory_gb: float | None = None
    minutes: int | None = None


@dataclass(frozen=True)
class Attempt:
    """One process to place.

    Attributes:
        job: Name of the job.
        command: Program and arguments, the same on every machine.
        environment: Variables on top of those that the process finds.
        directory: Its current folder.
        log: File that its output is appended to; the folder exists.
    """

    job: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    log: Path


class Engine(Protocol):
    """Places attempts as room comes up, all of which take the same `Resources`.

    Processes end soon after the engine's own process has, where that started them; they are sent
    SIGTERM first and never SIGKILL within 30 seconds of it.
    """

    resources: Resources

    def place(self, attempts: Sequence[Attempt]) -> None:
        """Take attempts, at most one at a time of a job; start them as soon as there is room.

        Raises:
            QatvalError: If they cannot be placed, for a reason that the user can change.
        """

    def held(self) -> set[str]:
        """Return the names of the jobs that are placed and have not been told as ended.

        An engine whose attempts outlive it has those of an earlier controller as well.
        """

    def ended(self) -> dict[str, str]:
        """Return what has ended since the last call: by job, in a few words, how (never waits)."""

    def stop(self) -> str:
        """Give up what is placed, or leave it to go on by itself; return in a line which."""
