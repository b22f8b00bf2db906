"""One owner per folder: a lock that says who holds it, and notices when its folder is another one.

A run locks every folder that it writes to, for as long as it lives. The lock is the kernel's
(``flock``) and ends with its process, however that ends: nobody waits for the dead, and no file
that one left behind means anything. Between hosts it holds as far as the file system takes it
along: Linux does over NFS version 4, a mount with ``local_lock`` or ``nolock`` does not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

import msgspec

from qatval.core.errors import QatvalError
from qatval.core.locks import Holder, named_in

_NAME = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)
_UNKNOWN_TO_THE_FILE_SYSTEM = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_log = logging.getLogger(__name__)


class LostError(QatvalError):
    """What this process had claimed is not there any more."""


class HeldError(QatvalError):
    """Another process has the folder."""


class Claim:
    """Folders that belong to this process until `release`.

    A context manager that does so at its end; `add` takes the folders.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held: list[_Lock] = []

    def __enter__(self) -> Claim:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release."""
        self.release()

    def release(self) -> None:
        """Give everything back."""
        while self._held:
            self._held.pop().release()

    def add(self, folder: Path) -> None:
        """Take a folder, made if it does not exist. Never waits.

        Raises:
            HeldError: If another process has it, saying which.
            QatvalError: If it cannot be written to.
        """
        self._held.append(_Lock(folder))

    def check(self, *folders: Path) -> None:
        """Make sure that some of the folders, or all, are still those that were taken.

        Raises:
            LostError: If one is gone, or another one is in its place.
        """
        for lock in self._held:
            if not folders or lock.folder in folders:
                lock.check()


class _Lock:
    """A locked file in a folder. It is gone when the lock is, unless the process was killed.

    Whoever unlinks the file holds it, and whoever takes it looks whether it still has its name: a
    lock on a file that nobody else can open any more would be worth nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / _NAME
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._locked()
            self._identity = _identity(folder.stat())
        except OSError as error:
            raise QatvalError(
                f"cannot write {folder}: {error.strerror}; give a folder you may write to, with "
                "space left"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: it is locked without a word as well
            os.truncate(self._descriptor, 0)
            os.write(self._descriptor, msgspec.json.encode(Holder.me()))

    def _locked(self) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._file, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    holder = named_in(os.pread(descriptor, 1000, 0))
                    os.close(descriptor)
                    raise HeldError(
                        f"{self.folder} is in use by {holder}: wait for it to end, or give "
                        "another folder"
                    ) from None
                if error.errno not in _UNKNOWN_TO_THE_FILE_SYSTEM:
                    os.close(descriptor)
                    raise
                _log.warning(
                    "%s: its file system knows no locks (%s): nothing keeps a second run out",
                    self.folder,
                    error.strerror,
                )
            if self._named(descriptor):
                return descriptor
            os.close(descriptor)  # its holder has just let go of it

    def _named(self, descriptor: int) -> bool:
        try:
            return _identity(self._file.stat()) == _identity(os.fstat(descriptor))
        except OSError:
            return False

    def is_intact(self) -> bool:
        with contextlib.suppress(OSError):
            return _identity(self.folder.stat()) == self._identity
        return False

    def check(self) -> None:
        if self.is_intact():
            return
        raise LostError(
            f"{self.folder} was removed, moved or replaced during the run: what was in it is lost "
            "to the run, which has to be begun again"
        )

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if self._named(self._descriptor):
                self._file.unlink()
        os.close(self._descriptor)
        if self.is_intact():
            with contextlib.suppress(OSError):  # it is not empty: something has come of it
                for path in self._made:
                    path.rmdir()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
