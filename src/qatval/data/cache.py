"""The cache: decoded annotation files and subsets, each found by what it is made from.

::

    <cache>/lock                     held while something is built or removed, see `locks`
    <cache>/known.json               files and folders that have not changed since, and digests
    <cache>/indexes/<sha256>-v3.npz  an annotation file without what detection does not need
    <cache>/subsets/<key>/           a subset, see `qatval.data.subset`

Entries are arrays and JSON, never pickles. They appear complete or not at all, are compared with
their digests whenever they are opened, and are relied on only where nobody else can have written
them. What a run uses it holds: nobody removes it meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qatval.core.environment import user_folder
from qatval.core.errors import DISK_FULL, QatvalError
from qatval.core.files import atomic_write, sha256_of
from qatval.core.locks import exclusive, unused, users_of
from qatval.data.coco import AnnotationIndex, read_annotations
from qatval.data.ownership import refuse_foreign

INDEX_VERSION = 3
_NAMES = (
    "file_names",
    "category_names",
    "category_parents",
)  # columns of an index that are no arrays
ENVIRONMENT_VARIABLE = "QATVAL_CACHE_DIR"
HELD = "train.npz"
"""The file of a subset that whoever uses it holds; it never changes."""

_NAME_ANOTHER = f"name another folder with --cache-dir or {ENVIRONMENT_VARIABLE}"
_NO_SPACE = (*DISK_FULL, errno.EFBIG)

Guard = tuple[int, int, int]  # size, mtime in ns, inode


class DamagedError(QatvalError):
    """A cache entry is not what was written."""


class InUseError(QatvalError):
    """A cache entry is what a run goes by."""


def default_cache_dir() -> Path:
    """Return `$QATVAL_CACHE_DIR`, else the user's cache directory.

    Raises:
        QatvalError: The user has no home folder.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(named)
    found = user_folder("cache")
    if found is None:
        raise QatvalError(
            "there is no home folder to keep the cache in (HOME is not set): name a folder with "
            f"--cache-dir or {ENVIRONMENT_VARIABLE}"
        )
    return found


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def guard_of(path: Path) -> Guard:
    """Return what cannot stay the same when a file's content or a folder's entries change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


class _KnownFile(msgspec.Struct):
    guard: Guard
    sha256: str


class _KnownFolder(msgspec.Struct):
    sound_for: dict[str, dict[str, Guard]] = {}  # by subset, for each folder that holds its images


class _Known(msgspec.Struct):
    files: dict[str, _KnownFile] = {}
    folders: dict[str, _KnownFolder] = {}
    indexes: dict[str, str] = {}  # the SHA-256 of each index itself, by its file's name


class Cache:
    """A cache directory, None for the default.

    Reading takes no lock; whatever writes runs inside `building()`.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Name a cache, which need not be there yet.

        Raises:
            QatvalError: Another user can have written to it.
        """
        self.directory = (directory or default_cache_dir()).absolute()
        self.indexes = self.directory / "indexes"
        self.subsets = self.directory / "subsets"
        self._known_path = self.directory / "known.json"
        # Where nobody else may make files, nobody else made those that are there.
        folders = (self.directory, self.indexes, self.subsets)
        refuse_foreign(*folders, remedy=f"{_NAME_ANOTHER} (a new one is made so)")

    @contextmanager
    def building(self) -> Iterator[None]:
        """Hold the cache's lock; other processes that want to build wait, and say for whom.

        Raises:
            QatvalError: The cache directory cannot be written, or its disk is full.
        """
        with ExitStack() as stack:
            stack.enter_context(_others_may_not_write())
            try:
                for folder in (self.indexes, self.subsets):
                    folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(self.directory / "lock"))
            except OSError as error:
                raise QatvalError(
                    f"{self.directory}: the cache cannot be written ({error.strerror}); "
                    f"{_NAME_ANOTHER}"
                ) from error
            # Of those who were killed: nobody else can be building.
            self._remove_partial()
            try:
                yield
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                self._remove_partial()
                raise QatvalError(
                    f"{self.directory}: the cache's disk is full ({error.strerror}); free some of "
                    f"it, or {_NAME_ANOTHER}"
                ) from error

    def _remove_partial(self) -> None:
        for folder in (self.directory, self.indexes, self.subsets):
            for left_over in folder.glob(".*.partial"):
                _remove(left_over)

    def known_digest(self, path: Path) -> str | None:
        """Return a file's SHA-256 if it was read before and has not changed since."""
        known = self._known().files.get(str(path))
        return known.sha256 if known and known.guard == guard_of(path) else None

    def known_sound(self, image_dir: Path, key: str) -> bool:
        """Say whether a subset's images were found sound and no folder has changed since."""
        known = self._known().folders.get(str(image_dir), _KnownFolder())
        guards = known.sound_for.get(key, {})
        with suppress(OSError):  # a folder that is gone has changed
            return bool(guards) and all(guard_of(Path(f)) == guard for f, guard in guards.items())
        return False

    def remember_sound(self, image_dir: Path, key: str, guards: Mapping[str, Guard]) -> None:
        """Record that a subset's images are sound.

        Args:
            image_dir: The folder that their names are relative to.
            key: The subset's.
            guards: Of every folder that holds one of them, taken before they were looked at.
        """
        known = self._known()
        folder = known.folders.setdefault(str(image_dir), _KnownFolder())
        kept = {k: g for k, g in folder.sound_for.items() if (self.subsets / k).exists()}
        folder.sound_for = {**kept, key: dict(guards)}
        self._write(known)

    def index(self, annotations: Path, *, verify: bool = False) -> tuple[AnnotationIndex, str]:
        """Return the decoded annotation file and its SHA-256, decoding it only when new."""
        # Taken before reading: a file that changes meanwhile must not pass for the one read.
        guard = guard_of(annotations)
        digest = sha256_of(annotations) if verify else self.known_digest(annotations)
        index = None
        if digest is not None:
            with suppress(DamagedError):
                index = self.load_index(self.index_path(digest))
        known = self._known()
        if index is None or digest is None:
            index, digest = read_annotations(annotations)
            partial = self.indexes / f".{digest}.partial"
            save_index(index, partial)
            known.indexes[self.index_path(digest).name] = sha256_of(partial)
            partial.replace(self.index_path(digest))
        known.files[str(annotations)] = _KnownFile(guard, digest)
        self._write(known)
        return index, digest

    def load_index(self, path: Path) -> AnnotationIndex:
        """Read an index.

        Raises:
            DamagedError: It is not the one that was written, or there is none.
        """
        try:
            if sha256_of(path) != self._known().indexes.get(path.name):
                raise DamagedError(f"{path}: its content has changed")
            return load_index(path)
        except OSError as error:
            raise DamagedError(f"{path}: cannot be read ({error.strerror})") from error

    def forget_changed(self) -> list[Path]:
        """Hash every annotation file that passes for unchanged; forget those that are not."""
        known, changed = self._known(), []
        for name, file in list(known.files.items()):
            with suppress(OSError):  # one that is gone passes for nothing
                path = Path(name)
                if guard_of(path) == file.guard and sha256_of(path) != file.sha256:
                    changed.append(path)
                    del known.files[name]
        if changed:
            self._write(known)
        return changed

    def index_path(self, digest: str) -> Path:
        """Return where the index of the annotation file with this SHA-256 is kept."""
        return self.indexes / f"{digest}-v{INDEX_VERSION}.npz"

    def entries(self) -> list[Path]:
        """Return every index and subset, whole ones only."""
        found = (sorted(folder.glob("[!.]*")) for folder in (self.indexes, self.subsets))
        return [path for paths in found for path in paths]

    def remove(self, entry: Path, *, in_use: bool = False) -> None:
        """Remove an index or a subset; in one step for whoever looks it up meanwhile.

        Args:
            entry: What `entries` returned.
            in_use: Whether to take it away from who uses it: the same will be there at once.

        Raises:
            InUseError: A run uses it.
        """
        doomed = entry.with_name(f".{entry.name}.partial")
        _remove(doomed)
        with unused(entry / HELD) as free:
            if not (free or in_use):
                raise InUseError(f"{entry}: in use by {users_of(entry / HELD)}")
            entry.replace(doomed)
        _remove(doomed)

    def _known(self) -> _Known:
        try:
            return msgspec.json.decode(self._known_path.read_bytes(), type=_Known)
        except (OSError, msgspec.DecodeError):
            return _Known()

    def _write(self, known: _Known) -> None:
        atomic_write(self._known_path, msgspec.json.encode(known))


def save_index(index: AnnotationIndex, path: Path) -> None:
    """Write an index as an uncompressed `.npz`."""
    save_arrays(path, vars(index) | {name: pack_names(vars(index)[name]) for name in _NAMES})


def load_index(path: Path) -> AnnotationIndex:
    """Read what `save_index` wrote; raises what `load_arrays` does."""
    arrays: dict[str, Any] = load_arrays(path)
    try:
        return AnnotationIndex(**arrays | {name: unpack_names(arrays[name]) for name in _NAMES})
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path}: not an annotation index; remove it") from error


def pack_names(names: Iterable[str]) -> NDArray[np.uint8]:
    """Pack names, which may hold anything, into one array."""
    return np.frombuffer(msgspec.json.encode(list(names)), np.uint8)


def unpack_names(packed: NDArray[np.uint8]) -> tuple[str, ...]:
    """Undo `pack_names`."""
    return msgspec.json.decode(packed.tobytes(), type=tuple[str, ...])


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an uncompressed `.npz`, whatever the name of the file."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an `.npz`; the checksums in it are compared on the way.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: It is cut short or altered.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedError(f"{path}: damaged ({error}); remove it and it is built again") from error


@contextmanager
def _others_may_not_write() -> Iterator[None]:
    """Make files that nobody else may write to, whatever the umask: they would not be relied on."""
    before = os.umask(0o022)
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
