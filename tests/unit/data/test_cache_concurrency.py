"""Several processes on one cache: one builds, nobody sees a half, the killed are cleaned up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("build_process.py")


def start(
    root: Path, cache_dir: Path, log: Path, *, pause: float = 0.0, stop_in: str = ""
) -> subprocess.Popen[str]:
    arguments = map(str, (root, cache_dir, log, pause, stop_in))
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments], stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.01)


def test_four_processes_build_once(write_coco: Any, cache_dir: Path, tmp_path: Path) -> None:
    root, log = write_coco(), tmp_path / "log"
    # The pause is for the others to come while the first is at it.
    processes = [start(root, cache_dir, log, pause=0.2) for _ in range(4)]
    outputs = [finish(process) for process in processes]
    assert len(set(outputs)) == 1
    assert sorted(log.read_text().split()) == [
        "instances_train2017.json",
        "instances_val2017.json",
    ]
    assert not list(cache_dir.rglob("*.partial"))


@pytest.mark.parametrize("stop_in", ["training_labels", "write_annotations"])
def test_a_killed_builder_leaves_nothing_in_the_way(
    write_coco: Any, cache_dir: Path, tmp_path: Path, stop_in: str
) -> None:
    root, log = write_coco(), tmp_path / "log"
    doomed = start(root, cache_dir, log, stop_in=stop_in)
    wait_for(log.with_suffix(".stopped"))
    log.with_suffix(".ready").unlink()
    waiting = start(root, cache_dir, log)
    wait_for(log.with_suffix(".ready"))
    time.sleep(0.05)  # to the lock it is not far from there
    # In the middle of building: the temporary folder is there, the entry is not.
    assert list((cache_dir / "subsets").glob(".*.partial"))
    assert not [p for p in (cache_dir / "subsets").iterdir() if not p.name.startswith(".")]
    assert waiting.poll() is None
    doomed.kill()
    doomed.communicate()
    assert finish(waiting).split()[1] == "10"
    assert not list(cache_dir.rglob("*.partial"))
    # The index that the killed process had finished was not decoded again.
    assert len(log.read_text().split()) == 2
