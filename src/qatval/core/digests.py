"""Digests of what is written, by which a later reader knows whether it is still the same.

A digested file has its SHA-256 in a file beside it, ``<name>.sha256``, as ``sha256sum`` writes and
checks it. Digests tell what was damaged, lost or changed by mistake; whoever means to deceive can
write both anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from qatval.core.files import atomic_write, read_regular, sha256_of
from qatval.core.measurements import Count, Record

_LONGEST = 10_000  # bytes of a file of digests, which has two lines at most


class FileDigest(Record, frozen=True):
    """Size and SHA-256 of a file."""

    bytes: Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: Path) -> FileDigest:
        """Return those of a file as it is now."""
        return cls(path.stat().st_size, sha256_of(path))


def digests_of(root: Path, own: Iterable[Path]) -> dict[str, FileDigest]:
    """Return the digests of all files at and below some paths, by name below ``root`` with /."""
    files = [file for path in own for file in ([path] if path.is_file() else visible_files(path))]
    return {file.relative_to(root).as_posix(): FileDigest.of(file) for file in sorted(files)}


def visible_files(folder: Path, but_below: str | None = None) -> Iterator[Path]:
    """Yield all files below a folder; what is hidden belongs to nobody's result.

    Of folders that hold a file of the name ``but_below``, other than the first, there is none.
    """
    for at, folders, names in os.walk(folder):
        here = Path(at)
        if but_below in names and here != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (here / name for name in names if not name.startswith("."))


def digest_beside(file: Path) -> Path:
    """Return where the digest of a digested file is."""
    return file.with_name(f"{file.name}.sha256")


def write_digested(
    file: Path, content: bytes, write: Callable[[Path, bytes], None] = atomic_write
) -> None:
    """Replace a file and the digest beside it.

    The digest beside it is first written for both contents, the new one and the one that is
    there, and for the new one alone when that is in place: whenever the process dies, what it
    leaves has a digest that fits.

    Args:
        file: The file.
        content: Its new content.
        write: Replaces one file.

    Raises:
        QatvalError: If one of the two cannot be written.
    """
    beside, new = digest_beside(file), _line(file, content)
    before = _line(file, file.read_bytes()) if file.is_file() else new
    if before != new:
        write(beside, (new + before).encode())
    elif not file.is_file():
        write(beside, new.encode())
    write(file, content)
    write(beside, new.encode())


def read_digested(file: Path, limit: int) -> tuple[bytes, bool | None]:
    """Read a file of at most ``limit`` bytes and compare it with the digest beside it.

    Returns:
        The content, and whether a digest beside it fits; None if there is none.

    Raises:
        QatvalError: The file cannot be read.
    """
    # Twice, before and after: a running process may be replacing both.
    known = _recorded(file)
    content = read_regular(file, limit, expected="what a run wrote")
    digest = hashlib.sha256(content).hexdigest()
    if known is None or digest not in known:
        known = _recorded(file)
    return content, None if known is None else digest in known


def _line(file: Path, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {file.name}\n"


def _recorded(file: Path) -> list[str] | None:
    """Return the digests in the file beside a digested one, None where there is no such file."""
    beside = digest_beside(file)
    if not os.path.lexists(beside):
        return None
    lines = (
        read_regular(beside, _LONGEST, expected="a digest").decode("utf-8", "replace").splitlines()
    )
    return [digest for digest, _, name in (line.partition("  ") for line in lines) if name]
