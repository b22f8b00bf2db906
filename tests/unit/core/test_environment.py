"""What a process settles about itself before it trains."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qatval.core.environment import available_cores

MIB = 2**20
BLOCKS, TURNS = 8, 20
PAGES = BLOCKS * MIB // mmap.PAGESIZE
TAKEN = 256  # MiB
PROGRAM = Path(__file__).with_name("memory_process.py")


def process(*arguments: str, **environment: str) -> list[int]:
    """Run the program with this environment and return the numbers that it prints."""
    command = [sys.executable, PROGRAM, *arguments]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}  # the same qatval as here
    env = path | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def page_faults(**environment: str) -> int:
    """Return how many pages are mapped anew when blocks of 1 MiB are freed over and over."""
    (found,) = process("faults", str(BLOCKS), str(TURNS), **environment)
    return found


glibc = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


@glibc
def test_freed_memory_stays_with_the_process() -> None:
    assert page_faults() < PAGES // 4


@glibc
def test_what_the_user_has_settled_is_left_alone() -> None:
    # The user's threshold has malloc map and unmap each of the blocks.
    assert page_faults(MALLOC_MMAP_THRESHOLD_="65536") >= TURNS * PAGES


@glibc
def test_the_peak_of_memory_is_what_was_taken_and_not_what_is_left() -> None:
    # In a process of its own: this one has had more than that before.
    before, peak = process("peak", str(TAKEN))
    assert peak - before == pytest.approx(TAKEN, abs=8)


@pytest.mark.skipif(available_cores() < 2, reason="one core")
def test_ultralytics_does_not_take_the_cores_from_torch() -> None:
    program = "import qatval.train, torch; print(torch.get_num_threads())"
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1
