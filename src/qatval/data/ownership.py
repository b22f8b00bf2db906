"""Who can have written a file: nobody but its user and the system's administrator may."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from qatval.core.errors import QatvalError


def refuse_foreign(*paths: Path, remedy: str) -> None:
    """Refuse files and folders that another user can have written; what is not there passes.

    They have to belong to this process's user or to root, and nobody else may write to them. A
    group may where it is the user's own, as systems with a umask of 002 give one to each user.

    Args:
        paths: What is relied on.
        remedy: What to do besides taking the right away, for the message.

    Raises:
        QatvalError: It names the first that others may write to, and how they may.
    """
    if not hasattr(os, "geteuid"):  # Windows: rights are lists, and user folders are private
        return
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            why = "who could change what is trained and judged on"
            if status.st_uid not in (0, os.geteuid()):
                owner = f"another user (uid {status.st_uid})"
                raise QatvalError(f"{path}: belongs to {owner}, {why}; {remedy}")
            if others := _others(status):
                chmod = f"'chmod -R go-w {path}' if you trust what is in it"
                raise QatvalError(
                    f"{path}: may be written by {others}, {why}; {chmod}, or {remedy}"
                )


def _others(status: os.stat_result) -> str | None:
    """Say who besides the owner may write; None if nobody may."""
    mode = stat.filemode(status.st_mode)
    if status.st_mode & stat.S_IWOTH:
        return f"everybody ({mode})"
    if status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid):
        return f"others, of group {status.st_gid} ({mode})"
    return None


def _is_own_group(gid: int) -> bool:
    """Say whether a group has the name of this process's user, and no other member."""
    import grp
    import pwd

    try:
        name, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}
