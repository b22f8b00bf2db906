"""A download ends, in bounded time and space, whatever the server does."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qatval.core.errors import QatvalError
from qatval.data import download as module
from qatval.data.download import download

Answer = Callable[[socket.socket], None]
Serve = Callable[[Answer], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that answers whatever asks on this machine; it returns the address."""
    listening: list[socket.socket] = []

    def start(answer: Answer) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def work() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    with contextlib.suppress(OSError):
                        answer(connection)

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/file.pt"

    yield start
    for server in listening:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def says(*lines: str, body: bytes = b"") -> Answer:
    content = "\r\n".join((*lines, "", "")).encode() + body
    return lambda connection: connection.sendall(content)


def quiet(done: int, expected: int | None) -> None:
    pass


def refused(url: str, partial: Path, message: str) -> None:
    with pytest.raises(QatvalError, match=message) as caught:
        download(url, partial, quiet)
    assert str(caught.value).isprintable()


OK = "HTTP/1.1 200 OK"


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 5000, "1e3", "1 2"])
def test_a_length_that_is_none(length: str, serve: Serve, tmp_path: Path) -> None:
    url = serve(says(OK, f"Content-Length: {length}", body=b"12345"))
    refused(url, tmp_path / "x.part", "expected a length in bytes, got '")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (says("HTTP/1.1 503 \x1b[31mnone"), "the server answered 503 Service Unavailable; check"),
        (says("HTTP/1.1 299 Odd", "Content-Length: 1", body=b"x"), "answered 299, expected 200"),
        (says("HTTP/1.1 204 No Content"), "answered 204, expected 200"),
        (says("\x1b[2Jno HTTP"), r"broke off after 0 bytes \('\\x1b\[2Jno HTTP"),
        (says(OK, *(f"X-{n}: 1" for n in range(200))), "broke off after 0 bytes .*headers"),
        (lambda connection: None, "broke off after 0 bytes"),
        (says(OK, "Transfer-Encoding: chunked", body=b"zz\r\nabc"), "broke off after 0 bytes"),
        (says("HTTP/1.1 302 Found", "Location: file:///etc/passwd"), "leads to 'file:///etc/pass"),
        (says("HTTP/1.1 302 Found", "Location: ftp://127.0.0.1/x"), "leads to 'ftp://127"),
        (says("HTTP/1.1 302 Found", "Location: \x1b[2J"), "leads to|expected an address"),
        (says("HTTP/1.1 302 Found"), "leads to 'nowhere'"),
        (says("HTTP/1.1 302 Found", "Location: /file.pt"), "leads to '/file.pt'"),
    ],
)
def test_what_a_server_should_not_say(
    answer: Answer, message: str, serve: Serve, tmp_path: Path
) -> None:
    refused(serve(answer), tmp_path / "x.part", message)
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_is_followed(serve: Serve, tmp_path: Path) -> None:
    second = serve(says(OK, "Content-Length: 3", body=b"abc"))
    download(serve(says("HTTP/1.1 302 Found", f"Location: {second}")), tmp_path / "x", quiet)
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_nobody_leads_from_https_to_http() -> None:
    import urllib.request

    handler = module._Redirects()
    for origin, target, followed in (
        ("https://a.test/", "http://b.test/", False),
        ("https://a.test/", "https://b.test/", True),
        ("http://a.test/", "https://b.test/", True),
    ):
        asked = urllib.request.Request(origin)
        found = handler.redirect_request(asked, None, 302, "", {}, target)
        assert (found is not None) == followed


def test_a_body_without_end(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 3 << 20)

    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(1 << 16))

    refused(serve(endless), tmp_path / "x.part", f"expected up to {3 << 20} bytes, got more")
    announced = says(OK, f"Content-Length: {4 << 20}")
    refused(serve(announced), tmp_path / "x.part", f"expected up to {3 << 20} bytes, got {4 << 20}")
    refused("file:///dev/zero", tmp_path / "x.part", "got more")
    assert list(tmp_path.iterdir()) == []


def drips(start: bytes, drop: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(300):
            connection.sendall(drop)
            time.sleep(0.02)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        drips(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        drips(b"HTTP/1.1 200 OK\r\nX-Header: ", b"x"),
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    ],
    ids=["body", "header", "chunk"],
)
def test_a_drip_feed(
    answer: Answer, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.3)
    began = time.monotonic()
    refused(serve(answer), tmp_path / "x.part", "slower than 60000 bytes in 0.3 s")
    assert time.monotonic() - began < 3


def test_a_download_has_a_deadline(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WINDOW_S", 0.1), ("DEADLINE_S", 0.3), ("MIN_BYTES", 1)):
        monkeypatch.setattr(module, name, value)
    url = serve(drips(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x" * 100))
    refused(url, tmp_path / "x.part", "not done after 0.3 s")
    assert (tmp_path / "x.part").stat().st_size > 0


def test_a_pipe_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    refused((tmp_path / "pipe").as_uri(), tmp_path / "x.part", "slower than")
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))


def test_nothing_but_a_partial_file_is_written_to(serve: Serve, tmp_path: Path) -> None:
    url = serve(says(OK, "Content-Length: 3", body=b"abc"))
    victim, partial = tmp_path / "victim", tmp_path / "x.part"
    victim.write_text("mine")
    for put in (
        lambda: partial.symlink_to(victim),
        lambda: partial.symlink_to(tmp_path / "nothing"),
        lambda: partial.hardlink_to(victim),
        lambda: partial.mkdir(),
        lambda: os.mkfifo(partial),
    ):
        put()
        refused(url, partial, "expected a partial download.*; remove what is there")
        partial.rmdir() if partial.is_dir() else partial.unlink()
    assert victim.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_a_full_disk_is_the_disks_error(serve: Serve, tmp_path: Path) -> None:
    url = serve(says(OK, "Content-Length: 3", body=b"abc"))
    with pytest.raises(OSError, match="No such file"):
        download(url, tmp_path / "none" / "x.part", quiet)


@pytest.mark.parametrize("url", ["http://[::1", "http://a b/c", "http://\u00e9/", "http://a:b/"])
def test_what_is_no_address(url: str, tmp_path: Path) -> None:
    refused(url, tmp_path / "x.part", "address|not reachable")


def test_a_truncated_body_is_kept_and_continued(serve: Serve, tmp_path: Path) -> None:
    partial = tmp_path / "x.part"
    refused(
        serve(says(OK, "Content-Length: 6", body=b"abc")), partial, "after 3 bytes .*expected 6"
    )
    rest = says(
        "HTTP/1.1 206 Partial", "Content-Range: bytes 3-5/6", "Content-Length: 3", body=b"def"
    )
    download(serve(rest), partial, quiet)
    assert partial.read_bytes() == b"abcdef"
    # One that continues elsewhere than was asked, or that nobody asked to continue.
    partial.write_bytes(b"abc")
    other = says(
        "HTTP/1.1 206 Partial", "Content-Range: bytes 1-3/6", "Content-Length: 3", body=b"bcd"
    )
    refused(serve(other), partial, "answered 206, expected 200")
    assert not partial.exists()
