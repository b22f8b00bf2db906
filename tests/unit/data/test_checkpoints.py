"""Checkpoints come whole, from any address, and stay what they were."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qatval.cli import checkpoints as command
from qatval.core.errors import QatvalError, UsageError
from qatval.core.presets import variant, variant_names
from qatval.data import checkpoints as store
from qatval.data import download
from qatval.data.checkpoints import CHECKSUMS_NAME, hold_to_pin

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


def no_web_page(path: Path) -> None:
    if path.read_bytes().startswith(b"<html"):
        raise QatvalError(f"{path} is a web page")


fetch = functools.partial(store.fetch, check=no_web_page)
verify = functools.partial(store.verify, check=no_web_page)


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

    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(QatvalError, match="timed out"):
            fetch(NAME, tmp_path, source=url, progress=quiet)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        f'{{"{NAME}": {{"a": 1}}}}',
        f'{{"{NAME}": "abc"}}',
        f'{{"{NAME}": "{DIGEST}\\n"}}',
        "[" * 100_000,
        f'{{"{NAME}": {"[" * 100_000}',
        "\udce9",
        " " * 2_000_000,
    ],
    ids=["cut", "list", "nested", "short", "newline", "deep", "deep value", "no UTF-8", "large"],
)
def test_an_odd_record_is_not_ignored(server: Server, tmp_path: Path, content: str) -> None:
    (tmp_path / CHECKSUMS_NAME).write_bytes(content.encode("utf-8", "surrogateescape"))
    for use in (
        lambda: fetch(NAME, tmp_path, source=server.url, progress=quiet),
        lambda: hold_to_pin(tmp_path / CHECKSUMS_NAME),
    ):
        with pytest.raises(QatvalError, match="restore it, or delete it") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_folder_or_a_pipe_in_the_place_of_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a" / NAME).mkdir(parents=True)
    with pytest.raises(QatvalError, match="expected a file or nothing; remove what is there"):
        fetch(NAME, tmp_path / "a", source=server.url, progress=quiet)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / CHECKSUMS_NAME)
    with pytest.raises(QatvalError, match="expected a file of up to 1 MiB"):
        fetch(NAME, tmp_path / "b", source=server.url, progress=quiet)
    (tmp_path / "c").touch()
    with pytest.raises(QatvalError, match=r"cannot be written \((File exists|Not a directory)\)"):
        fetch(NAME, tmp_path / "c" / "d", source=server.url, progress=quiet)
    assert server.requests == []


def test_what_is_no_checkpoint_is_not_pinned(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>Please log in"
    with pytest.raises(QatvalError, match=rf"{NAME}: what it sent is a web page$"):
        fetch(NAME, tmp_path, source=server.url, progress=quiet)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / NAME).write_bytes(server.content)
    with pytest.raises(QatvalError, match="is a web page"):
        fetch(NAME, tmp_path, source=server.url, progress=quiet)
    assert not verify(NAME, tmp_path).sound
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_digest_that_qatval_knows_comes_first(server: Server, tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS_NAME).write_text(json.dumps({NAME: DIGEST}))
    with pytest.raises(QatvalError, match=r"qatval knows the official file by 0000.*address$"):
        fetch(NAME, tmp_path, source=server.url, progress=quiet, known="0" * 64)
    (tmp_path / CHECKSUMS_NAME).unlink()
    fetch(NAME, tmp_path, source=server.url, progress=quiet, known=DIGEST)
    assert verify(NAME, tmp_path, known=DIGEST).sound
    assert not verify(NAME, tmp_path, known="0" * 64).sound
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_checkpoint_is_held_to_its_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / NAME
    hold_to_pin(file)
    file.write_bytes(CONTENT)
    hold_to_pin(file)
    (tmp_path / CHECKSUMS_NAME).write_text(json.dumps({NAME: DIGEST.upper(), "other.pt": "0" * 64}))
    hold_to_pin(file)
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(
        QatvalError, match=rf"checksums\.json records {DIGEST[:16]}.*or remove its entry"
    ):
        hold_to_pin(file)
    (tmp_path / CHECKSUMS_NAME).unlink()
    official = dataclasses.replace(variant("yolo10n"), checkpoint=file, sha256=DIGEST)
    monkeypatch.setattr(store, "variant", lambda name: official)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QatvalError, match="qatval knows the official file by") as caught:
        hold_to_pin(Path(NAME))
    assert "entry" not in str(caught.value)
    file.write_bytes(CONTENT)
    hold_to_pin(Path(NAME))


@pytest.mark.parametrize("name", variant_names())
def test_known_digests_are_digests(name: str) -> None:
    assert re.fullmatch("[0-9a-f]{64}", variant(name).sha256 or "0" * 64)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["checkpoints", *words])
    code: int = args.handler(args)
    return code


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """What torch saves of a detector's state."""
    import torch

    content = io.BytesIO()
    torch.save({"model.0.conv.weight": torch.ones(2, 3)}, content)
    return content.getvalue()


def test_the_command(
    server: Server, tmp_path: Path, checkpoint: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = checkpoint
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


def test_the_command_refuses_what_a_run_could_not_read(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>Please log in"
    with pytest.raises(QatvalError, match="what it sent is not a loadable checkpoint: a web page"):
        run("fetch", "yolo10n", "--from", server.url, "--dir", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
