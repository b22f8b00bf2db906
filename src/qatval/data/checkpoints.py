"""The official checkpoints: fetched once, and held to one SHA-256 ever after, their pin.

That is the one that ``core/presets/variants.toml`` knows; where it knows none, that of the file
that was fetched or verified first, recorded in ``checksums.json`` beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from qatval.core.errors import QatvalError, quoted
from qatval.core.files import atomic_write, sha256_of, to_json
from qatval.core.presets import variant, variant_names
from qatval.data.download import Progress, download

RELEASE_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
CHECKSUMS_NAME = "checksums.json"
_MAX_CHECKSUMS_BYTES = 1 << 20

_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-fA-F]{64}\Z")]

Check = Callable[[Path], object]
"""Raises QatvalError, naming the path, for a file that is no checkpoint."""


class Verdict(NamedTuple):
    """Whether a file is there with the recorded digest, what was found and what to do."""

    name: str
    sound: bool
    message: str


class _Pin(NamedTuple):
    """The digest that a file must have, who says so, and what to do if it is to have another."""

    digest: str
    says: str
    otherwise: str


def fetch(
    name: str,
    directory: Path,
    *,
    source: str = RELEASE_URL,
    known: str | None = None,
    check: Check,
    progress: Progress,
) -> Path:
    """Fetch a checkpoint unless it is there already.

    An interrupted download goes on where it stopped. The file appears under its name only when it
    is whole and has the pinned digest; where none is pinned it must be a checkpoint, and is pinned.

    Args:
        name: File name, e.g. ``"yolov10n.pt"``.
        directory: Where it belongs; created where missing.
        source: Address of the folder that holds the file, or of the file itself if it ends in
            ``.pt``: ``https:``, ``http:`` or ``file:``.
        known: SHA-256 of the official file, None if qatval does not know it.
        check: Tells what is no checkpoint.
        progress: Told how far the download is.

    Raises:
        QatvalError: It cannot be downloaded (`qatval.data.download.download`), its content is no
            checkpoint or not what is pinned, or it cannot be put in its place.
    """
    target = directory / name
    pin = _pin(target, known)
    if target.is_file():
        digest = _checked(target, pin, check)
    elif target.exists():
        raise QatvalError(f"{target}: expected a file or nothing; remove what is there")
    else:
        url = source if source.endswith(".pt") else f"{source.rstrip('/')}/{name}"
        # One partial file for each address: bytes of different origin must never mix.
        origin = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        partial = directory / f"{name}.{origin}.part"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            download(url, partial, progress)
            digest = _checked_download(partial, url, pin, check)
            partial.replace(target)
        except OSError as error:
            raise QatvalError(
                f"{target}: cannot be written ({error.strerror}); check the folder and disk space"
            ) from error
    if pin is None:
        _record(target, digest)
    return target


def verify(name: str, directory: Path, *, known: str | None = None, check: Check) -> Verdict:
    """Compare a checkpoint with its pin; one without is pinned. Arguments are those of `fetch`."""
    target = directory / name
    if not target.is_file():
        return Verdict(name, False, f"missing; 'qatval checkpoints fetch {name}' gets it")
    pin = _pin(target, known)
    try:
        digest = _checked(target, pin, check)
    except QatvalError as error:
        return Verdict(name, False, str(error))
    if pin is None:
        _record(target, digest)
        return Verdict(name, True, f"{digest}, recorded now")
    return Verdict(name, True, digest)


def hold_to_pin(path: Path) -> None:
    """Refuse a checkpoint that is not the one that is pinned, where one is.

    Raises:
        QatvalError: It says what was expected, what came and what to do. A file that is missing is
            left to others to tell.
    """
    if not path.is_file():
        return
    variants = map(variant, variant_names())
    known = (v.sha256 for v in variants if v.checkpoint.resolve() == path.resolve())
    if (pin := _pin(path, next(known, None))) is not None:
        _checked(path, pin, lambda _: None)


def _pin(target: Path, known: str | None) -> _Pin | None:
    if known is not None:
        return _Pin(known, "qatval knows the official file by", "")
    recorded = _read_checksums(target.parent).get(target.name)
    if recorded is None:
        return None
    remedy = f", or remove its entry in {target.parent / CHECKSUMS_NAME} if you trust this file"
    return _Pin(recorded.lower(), f"{CHECKSUMS_NAME} records", remedy)


def _checked(target: Path, pin: _Pin | None, check: Check) -> str:
    """Return the digest of a file that is what it should be."""
    digest = sha256_of(target)
    if pin is None:
        check(target)
    elif pin.digest != digest:
        raise QatvalError(
            f"{target}: {_differing(digest, pin)}; delete the file and fetch it again with 'qatval "
            f"checkpoints fetch'{pin.otherwise}"
        )
    return digest


def _checked_download(partial: Path, url: str, pin: _Pin | None, check: Check) -> str:
    """Return the digest of what was downloaded; remove what is not what it should be."""
    digest = sha256_of(partial)
    try:
        if pin is None:
            check(partial)
        elif pin.digest != digest:
            raise QatvalError(
                f"{url}: {_differing(digest, pin)}; fetch it from another address{pin.otherwise}"
            )
    except QatvalError as error:
        partial.unlink()
        if pin is not None:
            raise
        said = str(error).removeprefix(f"{partial} ")
        raise QatvalError(f"{url}: what it sent {said}") from error
    return digest


def _differing(digest: str, pin: _Pin) -> str:
    return f"SHA-256 is {digest[:16]}..., {pin.says} {pin.digest[:16]}..."


def _read_checksums(directory: Path) -> dict[str, str]:
    path = directory / CHECKSUMS_NAME
    remedy = "restore it, or delete it to record digests anew"
    try:
        if not path.exists():
            return {}
        if not path.is_file() or path.stat().st_size > _MAX_CHECKSUMS_BYTES:
            raise QatvalError(f"{path}: expected a file of up to 1 MiB; {remedy}")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Digest])
    # Text that is no UTF-8 is a ValueError, nested too deep a RecursionError.
    except (OSError, ValueError, RecursionError) as error:
        raise QatvalError(
            f"{path}: expected a JSON object of file names and SHA-256 digests "
            f"({quoted(str(error))}); {remedy}"
        ) from error


def _record(target: Path, digest: str) -> None:
    checksums = {**_read_checksums(target.parent), target.name: digest}
    atomic_write(target.parent / CHECKSUMS_NAME, to_json(dict(sorted(checksums.items()))))
