"""Files that somebody else wrote, read within bounds."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from qatval.core.errors import QatvalError

CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")
"""No file is named so by anybody who means well: a terminal obeys these characters."""


def read_regular(path: Path, *, most: int, expected: str) -> bytes:
    """Read a whole file: a regular one, for others never end or keep whoever opens them waiting.

    Args:
        path: The file.
        most: How many bytes are read.
        expected: What it should be, for messages.

    Raises:
        QatvalError: It cannot be read, is another kind of file, or is larger.
    """

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise QatvalError(f"{path}: is no regular file; expected {expected}")
            if status.st_size > most:
                size = f"{status.st_size:,} bytes"
                raise QatvalError(f"{path}: has {size}; expected {expected}, of at most {most:,}")
            return file.read(most)
    except OSError as error:
        raise QatvalError(
            f"{path}: cannot be read ({error.strerror}); expected {expected}"
        ) from error
