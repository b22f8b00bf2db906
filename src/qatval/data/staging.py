"""Directories that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qatval.core.errors import QatvalError


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target` that takes its place when the block succeeds.

    Readers see either no `target` or a whole one. When the block raises, what was written is
    removed. A killed process leaves only `.<name>.<pid>.partial`, which nothing ever reads.

    Raises:
        QatvalError: the directory cannot be created.
        OSError: `target` exists and is not an empty directory, or the disk is full.
    """
    target = target.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise QatvalError(
            f"{target}: cannot be created ({error.strerror}); name a folder you may write to"
        ) from error
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
