"""Directories that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target` that takes its place when the block succeeds.

    Readers see either no `target` or a whole one. When the block raises, what was written is
    removed. A killed process leaves only `.<name>.<pid>.partial`, which nothing ever reads.

    Raises:
        OSError: `target` exists and is not an empty directory, or the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
