"""Kills a training of twelve epochs after each of them and goes on from what each has left.

Argument: an empty folder. Prints one line a kill, the epoch and a digest of what the training that
went on has left; ``whole.digest`` in the folder has that of a training that nobody killed.

Every training is a fork of this process, which has imported everything and trained nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path

from test_resume import KILLS, Case, Point, outcome, train

from qatval.data.shapes import draw_dataset
from qatval.data.subset import build_subset
from qatval.train import trainer  # noqa: F401  what takes seconds

CASE = Case("fp32", {"epochs": KILLS, "mosaic": 0.5, "close_mosaic": 3, "nbs": 8})


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_fork(subset: Path, work: Path, *points: Point) -> str | None:
    """Train in a fork; return a digest of what it has left, None if it was killed."""
    child = os.fork()
    if not child:
        left = outcome(train(CASE, subset, work, *points))
        digest = hashlib.sha256(repr(sorted(left.items())).encode()).hexdigest()
        work.with_suffix(".digest").write_text(digest)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    assert status == 0
    return work.with_suffix(".digest").read_text()


def main(root: Path) -> None:
    draw_dataset(root / "shapes", train_images=8, val_images=2, size=64)
    subset = build_subset(
        root / "shapes", train_images=None, val_images=None, seed=0, cache_dir=root / "cache"
    ).directory
    assert in_fork(subset, root / "whole") is not None
    work = root / "work"
    for epoch in range(KILLS):
        assert in_fork(subset, work, Point("on_fit_epoch_end", epoch, None, kill)) is None
        shutil.copytree(work, root / f"killed-{epoch}")
    for epoch in range(KILLS):
        print(epoch + 1, in_fork(subset, root / f"killed-{epoch}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
