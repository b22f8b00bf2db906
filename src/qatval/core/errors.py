"""The errors a user can cause.

Each is shown as one line that says what was expected, what came and what to do, never as a
traceback. Anything else that is raised is a defect of qatval.
"""

from __future__ import annotations

import errno
import os
import sys

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EROFS)
_SHOWN = 80  # characters


class QatvalError(Exception):
    """A run could not start or go on because of something the user can change (exit code 1)."""

    exit_code = 1


class UsageError(QatvalError):
    """The command itself is wrong: an unknown choice, a value out of range (exit code 2)."""

    exit_code = 2


def quoted(text: str) -> str:
    """Return what a file says as an error may show it: in quotes, on one line, cut short.

    Control characters are escaped: no file moves the cursor of a terminal.
    """
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def from_system(error: BaseException) -> QatvalError | None:
    """Return what the system refused or lacks as an error of the user's, None if neither."""
    # Libraries wrap what it says in errors of their own.
    if any(os.strerror(number) in str(error) for number in DISK_FULL):
        return QatvalError(
            f"a disk is full ({error}): free some of it, or name folders on another one"
        )
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return QatvalError(
            f"{error.filename or 'a file'}: {error.strerror}; name one that you may use"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package != __name__.partition(".")[0]:
            return QatvalError(
                f"this needs {package}, which is not installed; 'pip install qatval' installs all "
                "that qatval needs"
            )
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and encoding != "utf-8":
        return QatvalError(
            f"this Python takes file names for {encoding} and cannot reach {error.object!a}: set "
            "PYTHONUTF8=1, or a locale with UTF-8"
        )
    return None
