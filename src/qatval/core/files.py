"""Files that appear whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qatval.core.errors import QatvalError


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file's content in one step: a reader sees the old one or the new one, whole.

    Raises:
        QatvalError: If the folder cannot be written to, or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(encoded(content) if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file that takes the place of ``path`` when the block succeeds.

    Raises:
        QatvalError: If the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise QatvalError(
            f"cannot write {path}: {error.strerror}; give a folder you may write to, with space "
            "left"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone after a success, or never came to be
            temporary.unlink()


def encoded(text: str) -> bytes:
    """Return a text as UTF-8, whatever file names are in it.

    Python hands on the bytes of a name that it cannot decode as lone surrogates, which UTF-8 does
    not have. Where those bytes are UTF-8 (in an ASCII locale) they are written, else a mark.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        data = text.encode("utf-8", "replace")
    return data.decode("utf-8", "replace").encode("utf-8")


def read_regular(path: Path, limit: int, *, expected: str) -> bytes:
    """Read a file that somebody else may have put there.

    Neither a FIFO nor a device nor an endless file blocks, or fills the memory.

    Args:
        path: The file; links are followed.
        limit: The most bytes that it may have.
        expected: What it should be, for messages.

    Raises:
        QatvalError: It cannot be read, is no regular file, or is larger.
    """
    try:
        with open(path, "rb", opener=_at_once) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise QatvalError(f"{path}: is no regular file; expected {expected}")
            content = stream.read(limit + 1) if status.st_size <= limit else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise QatvalError(f"{path}: cannot be read ({reason}); expected {expected}") from error
    if (size := max(status.st_size, len(content))) > limit:
        raise QatvalError(f"{path}: has {size:,} bytes; expected {expected}, of at most {limit:,}")
    return content


def _at_once(path: str, flags: int) -> int:
    """Open without waiting, as a FIFO that nobody writes to would have it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def inside(root: Path, recorded: str) -> Path:
    """Return where a path that is recorded in a file leads, links followed, if within a folder.

    Raises:
        QatvalError: It leads out of the folder, or cannot be a path.
    """
    try:
        # not Path.resolve(), which raises for links in a circle
        whole, place = (Path(os.path.realpath(path)) for path in (root, root / recorded))
    except (OSError, ValueError) as error:
        raise QatvalError(f"'{recorded:.200}' is no path ({error})") from error
    if not place.is_relative_to(whole):
        raise QatvalError(f"'{recorded:.200}' leads out of {root}")
    return place


def why_unwritable(folder: Path) -> str | None:
    """Return why nothing can be kept in a folder, None if something can; leaves no trace.

    Asking for permissions is not enough: a full disk grants them, and so does /proc.
    """
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            return f"{there} is not a folder"
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(2**14))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside ``target`` that takes its place when the block succeeds.

    Readers see either no ``target`` or a whole one. When the block raises, what was written is
    removed. A killed process leaves only ``.<name>.<pid>.partial``, which nothing ever reads.

    Raises:
        QatvalError: If the directory cannot be created.
        OSError: If ``target`` exists and is not an empty directory, or the disk is full.
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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def to_json(document: Mapping[str, Any]) -> str:
    """Return a document as indented JSON; a NaN or infinity in it is a ValueError."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
