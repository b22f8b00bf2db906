"""Attempts as processes of this machine, as many side by side as its cores or GPUs carry.

A process gets its number of threads and not cores of its own: a busy thread stays on its core by
itself, and one that is bound to it waits there for whatever else runs, while another core idles.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Sequence

from qatval.core import interruption
from qatval.core.environment import available_cores
from qatval.core.errors import QatvalError
from qatval.run.study.engines import Attempt, Resources, process

_POLL_S = 0.05


class LocalEngine:
    """Runs attempts on this machine, the first come first.

    Attributes:
        resources: What each takes.
        places: For each that can run at a time, the GPUs that it sees, as CUDA_VISIBLE_DEVICES
            names them; None where no GPU is asked for.
    """

    def __init__(self, resources: Resources, jobs: int | None = None) -> None:
        """Find out how many attempts the machine carries.

        Args:
            resources: What each takes.
            jobs: The most that run at a time, None for as many as the machine carries.

        Raises:
            QatvalError: If the machine lacks the GPUs that one takes.
        """
        self.resources = resources
        places = _gpu_places(resources.gpus) if resources.gpus else _cpu_places(resources)
        self.places = tuple(places[:jobs])
        self._free = list(reversed(self.places))
        self._queue: deque[Attempt] = deque()
        self._running: dict[str, tuple[subprocess.Popen[bytes], str | None]] = {}
        self._ended: dict[str, str] = {}

    def place(self, attempts: Sequence[Attempt]) -> None:
        """Queue attempts and start those that there is room for."""
        self._queue += attempts
        self._start()

    def held(self) -> set[str]:
        """Return the jobs that wait or run, or have ended without having been told of."""
        return {attempt.job for attempt in self._queue} | self._running.keys() | self._ended.keys()

    def ended(self) -> dict[str, str]:
        """Return what has ended since the last call, and start what there is room for now."""
        self._reap()
        self._start()
        told, self._ended = self._ended, {}
        return told

    def stop(self) -> str:
        """End all processes, which save what they have; wait for that a minute at most."""
        number = len(self._running)
        self._queue.clear()
        for running, _ in self._running.values():
            process.ask_to_end(running)
        until = time.monotonic() + process.PATIENCE_S
        while self._running and time.monotonic() < until:
            time.sleep(_POLL_S)
            self._reap()
        told = f"{number} running process{'' if number == 1 else 'es'} ended, with all kept"
        if late := len(self._running):
            told += f", but for the last steps of {late} that had to be killed"
        for job in list(self._running):
            self._end(job)
        return told

    def _start(self) -> None:
        while self._queue and self._free:
            attempt, place = self._queue.popleft(), self._free.pop()
            gpus = {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
            try:
                with interruption.deferred():  # what is started is known, and can be stopped
                    self._running[attempt.job] = process.start(attempt, gpus), place
            except OSError as error:
                self._ended[attempt.job] = f"could not be started ({error})"
                self._free.append(place)

    def _reap(self) -> None:
        for job, (running, _) in list(self._running.items()):
            if process.has_ended(running):
                self._end(job)

    def _end(self, job: str) -> None:
        running, place = self._running.pop(job)
        self._ended[job] = process.end(running)  # with loaders and ranks that a killed one leaves
        self._free.append(place)


def _cpu_places(resources: Resources) -> list[str | None]:
    number = available_cores() // resources.threads
    if resources.memory_gb:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        number = min(number, int(memory / resources.memory_gb))
    return [None] * max(number, 1)


def _gpu_places(share: float) -> list[str | None]:
    """Return the GPUs of each place; places are spread over all before two share one."""
    found = visible_gpus()
    if share < 1:
        places: list[str | None] = [gpu for _ in range(int(1 / share + 1e-6)) for gpu in found]
    else:
        width = int(share)
        places = [",".join(found[n : n + width]) for n in range(0, len(found) + 1 - width, width)]
    if not places:
        raise QatvalError(
            f"a run of this study takes {share:g} GPUs, and this machine has {len(found)}: give "
            "the study others under [resources], or run it where there are more"
        )
    return places


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
