"""What an exported file costs in a runtime: time and memory.

Imports nothing that the measured process does not need: what is loaded here is measured with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np

from qatval.core.deployment import Latency, RuntimeName
from qatval.core.environment import peak_resident_mb
from qatval.core.errors import QatvalError
from qatval.deploy.runtimes import Runtime, open_runtime

_UNTIMED_CALLS = 5
_FEWEST_CALLS, _MOST_CALLS = 20, 1000
_SECONDS = 3.0

_FILLED_CALLS = 2  # the first one makes the runtime's room for results, the second one reuses it


def latency(runtime: Runtime) -> Latency:
    """Time calls of one image each, at least 20 of them and for about three seconds.

    Of a file that takes larger batches alone, an image's share of a call.
    """
    told = runtime.card.input
    images = _noise(runtime)
    for _ in range(_UNTIMED_CALLS):
        runtime.run(images)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _FEWEST_CALLS or (
        time.perf_counter() - began < _SECONDS and len(times) < _MOST_CALLS
    ):
        start = time.perf_counter()
        runtime.run(images)
        times.append(time.perf_counter() - start)
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]) * 1e3 / (told.batch or 1)
    return Latency(
        median_ms=round(float(median), 3),
        low_ms=round(float(low), 3),
        high_ms=round(float(high), 3),
        calls=len(times),
        threads=runtime.threads,
    )


def resident_mb(name: RuntimeName, file: Path, *, threads: int) -> int | None:
    """Return the most memory in MiB of a new process that loads a file and runs it.

    Python, numpy and the runtime's own code are in it, as they are in any process that runs the
    file; of two files in one runtime they are the same.

    Returns:
        None where the system does not tell.

    Raises:
        QatvalError: The process did not come to its end, for want of memory for instance.
    """
    # -P: nothing in the current folder is taken for a module
    command = [sys.executable, "-P", "-c", _PROGRAM, name, str(file.absolute()), str(threads)]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise QatvalError(
            f"{file}: its memory could not be measured, the process that runs it failed ({said}); "
            "free some memory and try again"
        )
    measured: int | None = json.loads(ended.stdout.splitlines()[-1])
    return measured


_PROGRAM = """
import sys
from qatval.deploy.measuring import measure_this_process
measure_this_process(*sys.argv[1:])
"""


def measure_this_process(name: str, file: str, threads: str) -> None:
    """Load a file, run it and print the most memory that this process had."""
    (known,) = (n for n in get_args(RuntimeName) if n == name)
    runtime = open_runtime(known, Path(file), threads=int(threads))
    for _ in range(_FILLED_CALLS):
        runtime.run(_noise(runtime))
    print(json.dumps(peak_resident_mb()))


def _noise(runtime: Runtime) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    told = runtime.card.input
    shape = (told.batch or 1, 3, told.imgsz, told.imgsz)
    return np.random.default_rng(0).random(shape, np.float32)
