"""Several processes on one cache: one builds, nobody sees a half, the killed are cleaned up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# Runs in a process of its own and leaves a line in a log for each annotation file it decodes.
BUILD = """
import sys, time
from pathlib import Path
from qatval.data import cache, subset

root, cache_dir, log, stop_in = sys.argv[1:]
read = cache.read_annotations

def logged(path):
    with open(log, "a") as file:
        file.write(f"{path.name}\\n")
    time.sleep(0.3)
    return read(path)

cache.read_annotations = logged
if stop_in:
    def stop(*args):
        Path(log).with_suffix(".stopped").touch()
        time.sleep(60)
    setattr(subset, stop_in, stop)
built = subset.build_subset(
    Path(root), train_images=10, val_images=5, seed=0, cache_dir=Path(cache_dir)
)
print(built.identity["train"]["image_ids_sha256"], len(built.train), built.directory.name)
"""


def start(root: Path, cache_dir: Path, log: Path, stop_in: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(cache_dir), str(log), stop_in],
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output


def test_four_processes_build_once(write_coco: Any, cache_dir: Path, tmp_path: Path) -> None:
    root, log = write_coco(), tmp_path / "log"
    processes = [start(root, cache_dir, log) for _ in range(4)]
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
    doomed = start(root, cache_dir, log, stop_in)
    deadline = time.monotonic() + 30
    while not log.with_suffix(".stopped").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    waiting = start(root, cache_dir, log)
    time.sleep(0.2)
    # In the middle of building: the temporary folder is there, the entry is not.
    assert list((cache_dir / "subsets").glob(".*.partial"))
    assert not [p for p in (cache_dir / "subsets").iterdir() if not p.name.startswith(".")]
    doomed.kill()
    doomed.communicate()
    assert finish(waiting).split()[1] == "10"
    assert not list(cache_dir.rglob("*.partial"))
    # The index that the killed process had finished was not decoded again.
    assert len(log.read_text().split()) == 2
