"""The official checkpoints: fetched once, resumably, and held to their first SHA-256 ever after."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, sha256_of, to_json

RELEASE_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
CHECKSUMS_NAME = "checksums.json"
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes expected, None where the server does not say."""


@dataclass(frozen=True)
class Verdict:
    """Whether a file is there with the recorded digest, what was found and what to do."""

    name: str
    sound: bool
    message: str


def fetch(name: str, directory: Path, *, source: str = RELEASE_URL, progress: Progress) -> Path:
    """Fetch a checkpoint unless it is there already.

    An interrupted download goes on where it stopped. The file appears under its name only when it
    is whole and has the digest on record; the first download puts its digest on record.

    Args:
        name: File name, e.g. ``"yolov10n.pt"``.
        directory: Where it belongs; created where missing.
        source: Address of the folder that holds the file, or of the file itself if it ends in
            ``.pt``: ``https:``, ``http:`` or ``file:``.
        progress: Told how far the download is.

    Raises:
        QatvalError: The address does not answer, the transfer breaks off, or the content is not
            what the record says.
    """
    target = directory / name
    recorded = _read_checksums(directory).get(name)
    if target.is_file():
        digest = sha256_of(target)
        if recorded is not None and recorded != digest:
            raise _altered(target, recorded, digest)
    else:
        url = source if source.endswith(".pt") else f"{source.rstrip('/')}/{name}"
        if urlsplit(url).scheme not in ("https", "http", "file"):
            raise QatvalError(f"{url}: expected an address that begins with https:, http: or file:")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # One partial file for each address: bytes of different origin must never mix.
            origin = hashlib.sha256(url.encode()).hexdigest()[:8]
            partial = directory / f"{name}.{origin}.part"
            _download(url, partial, progress)
            digest = sha256_of(partial)
        except OSError as error:
            raise QatvalError(
                f"{target}: cannot be written ({error.strerror}); check the folder and disk space"
            ) from error
        if recorded is not None and recorded != digest:
            partial.unlink()
            remedy = "fetch it from another address, or delete the entry if you trust this file"
            raise QatvalError(f"{url}: {_differing(recorded, digest)} for {name}; {remedy}")
        partial.replace(target)
    if recorded is None:
        _record_checksum(directory, name, digest)
    return target


def verify(name: str, directory: Path) -> Verdict:
    """Compare a checkpoint with the digest on record; a file without one is put on record."""
    target = directory / name
    if not target.is_file():
        return Verdict(name, False, f"missing; 'qatval checkpoints fetch {name}' gets it")
    digest, recorded = sha256_of(target), _read_checksums(directory).get(name)
    if recorded is None:
        _record_checksum(directory, name, digest)
        return Verdict(name, True, f"{digest}, recorded now")
    if recorded != digest:
        return Verdict(name, False, str(_altered(target, recorded, digest)))
    return Verdict(name, True, digest)


def _download(url: str, partial: Path, progress: Progress) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url)
    if have and not url.startswith("file:"):
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            at = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            resumed = response.status == 206 and at is not None and int(at[1]) == have
            have = have if resumed else 0
            length = response.headers.get("Content-Length")
            expected = have + int(length) if length else None
            with partial.open("ab" if resumed else "wb") as file:
                while chunk := response.read(CHUNK_BYTES):
                    file.write(chunk)
                    have += len(chunk)
                    progress(have, expected)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            # What is there is as long as the file, or belongs to another one: start afresh.
            partial.unlink()
            return _download(url, partial, progress)
        raise QatvalError(
            f"{url}: the server answered {error.code} {error.reason}; check the address or give "
            "another with --from"
        ) from error
    except urllib.error.URLError as error:
        raise QatvalError(
            f"{url}: not reachable ({error.reason}); check the address and the network, or give "
            "another address with --from"
        ) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _broken_off(url, have, repr(error)) from error
    if expected is not None and have < expected:
        raise _broken_off(url, have, f"expected {expected} bytes")


def _broken_off(url: str, have: int, reason: str) -> QatvalError:
    return QatvalError(
        f"{url}: broke off after {have} bytes ({reason}); fetch again and it goes on from there"
    )


def _altered(target: Path, recorded: str, digest: str) -> QatvalError:
    remedy = "delete the file and fetch it again"
    return QatvalError(f"{target}: {_differing(recorded, digest)}; {remedy}")


def _differing(recorded: str, digest: str) -> str:
    return f"SHA-256 is {digest[:16]}..., {CHECKSUMS_NAME} records {recorded[:16]}..."


def _read_checksums(directory: Path) -> dict[str, str]:
    path = directory / CHECKSUMS_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise QatvalError(
            f"{path}: cannot be read ({error}); restore it, or delete it to record digests anew"
        ) from error
    if not isinstance(content, dict):
        raise QatvalError(f"{path}: expected a JSON object of file name and SHA-256; restore it")
    return {str(name): str(digest) for name, digest in content.items()}


def _record_checksum(directory: Path, name: str, digest: str) -> None:
    checksums = {**_read_checksums(directory), name: digest}
    atomic_write(directory / CHECKSUMS_NAME, to_json(dict(sorted(checksums.items()))))
