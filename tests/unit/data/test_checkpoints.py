"""Checkpoints come whole, from any address, and stay what they were."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qatval.cli import checkpoints as command
from qatval.core.errors import QatvalError, UsageError
from qatval.data import checkpoints as checkpoint_store
from qatval.data.checkpoints import CHECKSUMS_NAME, fetch, verify

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "yolov10n.pt"


class Server:
    """A release server on this machine that can break off, and logs what it was asked."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.break_after: int | None = None
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        if not handler.path.endswith(NAME):
            handler.send_error(404)
            return
        start = int(re.findall(r"\d+", asked)[0]) if asked and self.ranges else 0
        if start >= len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(self.content) - start))
        if start:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{len(self.content)}")
        handler.end_headers()
        body = self.content[start:]
        handler.wfile.write(body if self.break_after is None else body[: self.break_after])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def quiet(done: int, expected: int | None) -> None:
    pass


def test_a_file_is_fetched_once_and_put_on_record(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(NAME, tmp_path, source=server.url, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert json.loads((tmp_path / CHECKSUMS_NAME).read_text()) == {NAME: DIGEST}
    fetch(NAME, tmp_path, source=server.url, progress=quiet)
    assert server.requests == [(f"/{NAME}", None)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKSUMS_NAME, NAME]


@pytest.mark.parametrize("address", ["folder", "file"])
def test_file_addresses(tmp_path: Path, address: str) -> None:
    source = tmp_path / "release" / NAME
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    url = (source if address == "file" else source.parent).as_uri()
    assert fetch(NAME, tmp_path / "own", source=url, progress=quiet).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False], ids=["resumed", "from the start"])
def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.break_after = 100_000
    with pytest.raises(QatvalError, match="broke off after 100000 bytes") as caught:
        fetch(NAME, tmp_path, source=server.url, progress=quiet)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / NAME).exists()
    server.break_after = None
    server.ranges = ranges
    assert fetch(NAME, tmp_path, source=server.url, progress=quiet).read_bytes() == CONTENT
    assert server.requests[1] == (f"/{NAME}", "bytes=100000-")
    assert not list(tmp_path.glob("*.part"))


def test_what_another_address_left_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.break_after = 100_000
    with pytest.raises(QatvalError):
        fetch(NAME, tmp_path, source=server.url, progress=quiet)
    server.break_after = None
    fetch(NAME, tmp_path, source=f"{server.url}/mirror", progress=quiet)
    assert server.requests[-1] == (f"/mirror/{NAME}", None)


def test_a_partial_file_that_is_too_long_starts_afresh(server: Server, tmp_path: Path) -> None:
    server.break_after = 100_000
    with pytest.raises(QatvalError):
        fetch(NAME, tmp_path, source=server.url, progress=quiet)
    server.break_after = None
    server.content = CONTENT[:50_000]
    assert fetch(NAME, tmp_path, source=server.url, progress=quiet).stat().st_size == 50_000


def test_content_that_differs_from_the_record_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS_NAME).write_text(json.dumps({NAME: "0" * 64}))
    with pytest.raises(QatvalError, match=f"SHA-256 is {DIGEST[:16]}"):
        fetch(NAME, tmp_path, source=server.url, progress=quiet)
    assert [p.name for p in tmp_path.iterdir()] == [CHECKSUMS_NAME]


def test_an_altered_file_is_noticed(server: Server, tmp_path: Path) -> None:
    path = fetch(NAME, tmp_path, source=server.url, progress=quiet)
    assert verify(NAME, tmp_path).sound
    path.write_bytes(CONTENT[:-1])
    assert not verify(NAME, tmp_path).sound
    assert "delete the file and fetch it again" in verify(NAME, tmp_path).message
    with pytest.raises(QatvalError, match="delete the file and fetch it again"):
        fetch(NAME, tmp_path, source=server.url, progress=quiet)


def test_a_file_of_the_users_own_is_recorded_on_first_use(tmp_path: Path) -> None:
    assert "missing" in verify(NAME, tmp_path).message
    (tmp_path / NAME).write_bytes(CONTENT)
    assert "recorded now" in verify(NAME, tmp_path).message
    assert verify(NAME, tmp_path).message == DIGEST


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{url}/else/other.pt", "the server answered 404"),
        ("http://127.0.0.1:9", "not reachable"),
        ("file:///no/such/folder", "not reachable"),
        ("ftp://example.org", "begins with https:, http: or file:"),
        ("/no/scheme", "begins with https:, http: or file:"),
    ],
)
def test_bad_addresses(server: Server, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(QatvalError, match=message) as caught:
        fetch(NAME, tmp_path, source=source.format(url=server.url), progress=quiet)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / NAME).exists()


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(checkpoint_store, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(QatvalError, match="timed out"):
            fetch(NAME, tmp_path, source=url, progress=quiet)


def test_a_damaged_record_is_not_ignored(server: Server, tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS_NAME).write_text("{")
    with pytest.raises(QatvalError, match="restore it, or delete it"):
        fetch(NAME, tmp_path, source=server.url, progress=quiet)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["checkpoints", *words])
    code: int = args.handler(args)
    return code


def test_the_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--dir", str(tmp_path)]
    assert run("fetch", "yolo10n", "--from", server.url, *place) == 0
    assert capsys.readouterr().out == f"{tmp_path / NAME}\n"
    assert run("verify", NAME, *place) == 0
    assert run("verify", *place) == 1
    assert capsys.readouterr().out.count("NOT ok") == 2
    with pytest.raises(UsageError, match="unknown checkpoint 'yolo9n'"):
        run("fetch", "yolo9n", *place)
    with pytest.raises(UsageError, match="name the one variant"):
        run("fetch", "--from", f"{server.url}/{NAME}", *place)
