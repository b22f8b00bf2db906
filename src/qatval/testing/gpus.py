"""Several runs at a time on the GPUs of one machine, without a scheduler."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

_POLL_S = 0.1


@contextlib.contextmanager
def gpu_slot(locks: Path, *, gpus: int, runs_per_gpu: int) -> Iterator[str]:
    """Hold one of ``gpus * runs_per_gpu`` places and yield the GPU's index as ``--device``.

    Processes that name the same folder share the places; who finds none free waits. Places are
    handed out GPU by GPU, so that runs spread over all GPUs before two share one.
    """
    locks.mkdir(parents=True, exist_ok=True)
    places = [(gpu, place) for place in range(runs_per_gpu) for gpu in range(gpus)]
    while True:
        for gpu, place in places:
            lock = filelock.FileLock(locks / f"gpu{gpu}-{place}.lock")
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                continue
            try:
                yield str(gpu)
            finally:
                lock.release()
            return
        time.sleep(_POLL_S)
