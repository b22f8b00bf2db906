"""Locks on files: they end with the process that holds them, however that ends."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

PATIENCE_S = 10.0
"""Seconds of waiting for a lock after which its holder is named."""

_log = logging.getLogger(__name__)


class Holder(msgspec.Struct):
    """The process that holds a lock, as it says of itself."""

    pid: int
    host: str
    since: str

    @classmethod
    def me(cls) -> Holder:
        """Return this process, from now on."""
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), since)

    def __str__(self) -> str:
        there = "this machine" if self.host == socket.gethostname() else f"{self.host!r:.80}"
        return f"process {self.pid} on {there}, since {self.since!r:.40}"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file alone; who waits long for it is told once who has it.

    Args:
        path: The lock file, which stays. Its holder stands in a file beside it.

    Raises:
        OSError: The file cannot be made or locked.
    """
    lock = FileLock(path)
    # Not in the lock file itself: older releases of filelock empty it when they ask for it.
    note = path.with_name(f"{path.name}.holder")
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        _log.warning(
            "%s: waiting for %s; remove it if there is no such process any more",
            path,
            _holder(note),
        )
        lock.acquire()
    try:
        with suppress(OSError):  # on a full disk the lock works without
            note.write_bytes(msgspec.json.encode(Holder.me()))
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()


def named_in(content: bytes) -> str:
    """Return who holds a lock, by what it has written of itself."""
    try:
        return str(msgspec.json.decode(content, type=Holder))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "a process that has left no name"


def _holder(note: Path) -> str:
    with suppress(OSError):
        return named_in(note.read_bytes())
    return named_in(b"")


class Use:
    """A file in use, for as long as this object or its process lives.

    Any number of processes can use a file; `unused` tells that some do. On file systems without
    locks nobody can tell.
    """

    def __init__(self, path: Path) -> None:
        """Begin to use a file.

        Raises:
            OSError: It cannot be opened, or has been removed meanwhile.
        """
        self._descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            if not os.path.samestat(os.fstat(self._descriptor), path.stat()):
                raise FileNotFoundError(path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            with suppress(OSError):
                os.close(self._descriptor)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Say whether nobody uses a file; if so, nobody begins to within the block."""
    try:
        descriptor = os.open(path, os.O_RDWR)  # on NFS only what can be written can be locked
    except OSError:  # no file that a lock could be on
        yield True
        return
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def users_of(path: Path) -> str:
    """Name the processes that use a file, as far as the system tells."""
    pids: set[str] = set()
    with suppress(OSError):
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text("utf-8").splitlines():
            _, kind, _, _, pid, place, *_ = line.split()
            if kind == "FLOCK" and place.rpartition(":")[2] == inode:
                pids.add(pid)
    here = sorted(pids - {"0", "-1"}, key=int)  # 0: of another container
    if not here:
        return "a process on another machine or in another container"
    return f"process{'es' if here[1:] else ''} {', '.join(here)}"
