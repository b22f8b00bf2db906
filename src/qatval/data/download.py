"""Downloading one file, resumably, from a server that may be anyone's.

Whatever it does, the download ends, in bounded time and space: servers stall, drip, send without
end, redirect elsewhere, and lie about lengths.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from qatval.core.errors import QatvalError, quoted

CHUNK_BYTES = 1 << 20
MAX_BYTES = 512 << 20
"""Of a file; the largest official checkpoint of a detector has 140 MB."""
TIMEOUT_S = 30.0
"""Without a byte."""
WINDOW_S = 60.0
MIN_BYTES = 60_000
"""What has to come in every window, the first one's connecting included."""
DEADLINE_S = 3600.0
"""For all of it; what is there by then stays, and another download goes on from there."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes expected, None where the server does not say."""


def download(url: str, partial: Path, progress: Progress) -> None:
    """Fetch a file, from where an earlier download of it broke off.

    Args:
        url: Its address: ``https:``, ``http:`` or ``file:``.
        partial: Where it is kept, whole in the end. It goes on there; a link is not followed.
        progress: Told how far the download is, from another thread.

    Raises:
        QatvalError: The address does not answer, leads elsewhere, sends too much or too slowly, or
            the transfer breaks off; or something else than a partial file is in its place.
        OSError: The partial file cannot be written.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("https", "http", "file"):
        raise QatvalError(f"{url}: expected an address that begins with https:, http: or file:")
    # In a thread, as nothing else ends a look-up, a handshake or a header that drips.
    transfer = _Transfer(url, partial, progress)
    began = time.monotonic()
    transfer.start()
    try:
        while transfer.is_alive():
            before = transfer.have
            transfer.join(WINDOW_S)
            if transfer.is_alive() and transfer.have - before < MIN_BYTES:
                raise transfer.broken_off(f"slower than {MIN_BYTES} bytes in {WINDOW_S:g} s")
            if transfer.is_alive() and time.monotonic() - began > DEADLINE_S:
                raise transfer.broken_off(f"not done after {DEADLINE_S:g} s")
    finally:
        transfer.abandoned = True
    if transfer.error is not None:
        raise transfer.error


class _Transfer(threading.Thread):
    """The transfer itself.

    Attributes:
        have: Bytes of the file so far.
        error: What ended it, None if it is done.
        abandoned: Set by whoever does not wait for it any more.
    """

    def __init__(self, url: str, partial: Path, progress: Progress) -> None:
        super().__init__(daemon=True)
        self.have = 0
        self.error: BaseException | None = None
        self.abandoned = False
        self._url = url
        self._partial = partial
        self._progress = progress

    def broken_off(self, reason: str) -> QatvalError:
        """Return the error that says so."""
        return QatvalError(
            f"{self._url}: broke off after {self.have} bytes ({reason}); fetch again and it goes "
            "on from there"
        )

    def run(self) -> None:
        """Transfer; leave no empty file behind."""
        try:
            with _open_partial(self._partial) as file:
                try:
                    self._receive(file)
                finally:
                    if not self.have:
                        self._partial.unlink(missing_ok=True)
        except BaseException as error:
            self.error = error

    def _receive(self, file: BinaryIO) -> None:
        self.have = file.seek(0, os.SEEK_END)
        request = urllib.request.Request(self._url)
        if self.have and not self._url.startswith("file:"):
            request.add_header("Range", f"bytes={self.have}-")
        with self._answer(request) as response:
            if response is None:
                # What is there is as long as the file, or belongs to another one: start afresh.
                self._rewind(file)
                return self._receive(file)
            at = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
            if response.status != 206 or at is None or int(at[1]) != self.have:
                self._rewind(file)
            if response.status not in (None, 200) and not self.have:
                raise QatvalError(
                    f"{self._url}: the server answered {response.status}, expected 200; give "
                    "another address with --from"
                )
            expected = self._expected(response)
            for chunk in self._chunks(response):
                if self.abandoned:
                    return None
                if self.have + len(chunk) > MAX_BYTES:
                    self._rewind(file)
                    raise self._too_large("more")
                file.write(chunk)
                file.flush()
                self.have += len(chunk)
                self._progress(self.have, expected)
        if expected is not None and self.have < expected:
            raise self.broken_off(f"expected {expected} bytes")
        return None

    def _rewind(self, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        self.have = 0

    def _too_large(self, length: int | str) -> QatvalError:
        return QatvalError(
            f"{self._url}: expected up to {MAX_BYTES} bytes, got {length}; give another address "
            "with --from"
        )

    def _expected(self, response: Any) -> int | None:
        """Return how long the file will be, None where nobody says."""
        length = response.headers.get("Content-Length")
        if length is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", length):
            raise QatvalError(
                f"{self._url}: expected a length in bytes, got {quoted(length)}; give another "
                "address with --from"
            )
        expected = self.have + int(length)
        if expected > MAX_BYTES:
            raise self._too_large(expected)
        return expected

    def _chunks(self, response: Any) -> Iterator[bytes]:
        try:
            while chunk := response.read1(CHUNK_BYTES):
                yield chunk
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.broken_off(_said(error)) from error

    @contextlib.contextmanager
    def _answer(self, request: urllib.request.Request) -> Iterator[Any]:
        """Yield the server's answer, None if it has nothing beyond what is there already."""
        try:
            response = _OPENER.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and self.have:
                    yield None
                    return
                raise self._refusal(error) from error
        except urllib.error.URLError as error:
            raise QatvalError(
                f"{self._url}: not reachable ({_said(error.reason)}); check the address and the "
                "network, or give another address with --from"
            ) from error
        except http.client.InvalidURL as error:
            raise QatvalError(f"{self._url!a}: expected an address ({_said(error)})") from error
        except (OSError, http.client.HTTPException) as error:
            raise self.broken_off(_said(error)) from error
        except ValueError as error:
            raise QatvalError(f"{self._url!a}: expected an address ({_said(error)})") from error
        with response:
            yield response

    def _refusal(self, error: urllib.error.HTTPError) -> QatvalError:
        if 300 <= error.code < 400:
            place = quoted(error.headers.get("Location", "nowhere"))
            return QatvalError(
                f"{self._url}: leads to {place}; expected a redirect to https:, or to http: from "
                "there; give another address with --from"
            )
        reason = http.client.responses.get(error.code, "")
        return QatvalError(
            f"{self._url}: the server answered {error.code} {reason}".rstrip()
            + "; check the address or give another with --from"
        )


def _said(error: BaseException | str) -> str:
    return quoted(str(error) or type(error).__name__)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https:, and from http: to http:, and no others."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        """Return the request that follows, None for an address that is refused."""
        allowed = ("https",) if req.type == "https" else ("https", "http")
        if urlsplit(newurl).scheme not in allowed:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def _open_partial(partial: Path) -> BinaryIO:
    """Open a partial file of our own, which nothing else has a name for; make it if need be."""
    flags = os.O_RDWR | os.O_CREAT
    for safe in ("O_NOFOLLOW", "O_BINARY"):  # of systems that have them
        flags |= getattr(os, safe, 0)
    try:
        descriptor = os.open(partial, flags, 0o644)
    except OSError as error:
        if os.path.lexists(partial):
            raise QatvalError(
                f"{partial}: expected a partial download ({error.strerror}); remove what is there"
            ) from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise QatvalError(f"{partial}: expected a partial download; remove what is there")
    return os.fdopen(descriptor, "r+b")
