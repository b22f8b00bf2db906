"""Digested files: whatever a process is killed at, what it leaves has a digest that fits."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from qatval.core import digests
from qatval.core.digests import FileDigest, digest_beside, digests_of, read_digested, write_digested
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write

LIMIT = 10_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "file.json"
    write_digested(written, b"before")
    return written


def test_what_was_written_fits(file: Path) -> None:
    assert read_digested(file, LIMIT) == (b"before", True)
    write_digested(file, b"after")
    assert read_digested(file, LIMIT) == (b"after", True)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sha256sum_checks_it(file: Path) -> None:
    command = ["sha256sum", "--check", "--strict", digest_beside(file).name]
    assert subprocess.run(command, cwd=file.parent, capture_output=True).returncode == 0
    file.write_bytes(b"beforE")
    assert subprocess.run(command, cwd=file.parent, capture_output=True).returncode == 1


def test_without_a_digest_nobody_knows(file: Path) -> None:
    digest_beside(file).unlink()
    assert read_digested(file, LIMIT) == (b"before", None)


def test_every_flipped_bit_shows(file: Path) -> None:
    for path in (file, digest_beside(file)):
        content = path.read_bytes()
        for bit in range(8 * len(content) if path == file else 8 * 64):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert read_digested(file, LIMIT)[1] is False, (path, bit)
        path.write_bytes(content)


class Killed(BaseException):
    """Ends a process where it is."""


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("completed", [0, 1, 2])
def test_killed_between_any_two_writes_it_fits(file: Path, completed: int, there: bool) -> None:
    if not there:
        file.unlink()
        digest_beside(file).unlink()
    done = 0

    def write(path: Path, content: bytes) -> None:
        nonlocal done
        if done == completed:
            raise Killed
        done += 1
        atomic_write(path, content)

    with pytest.raises(Killed):
        write_digested(file, b"after", write)
    if there or completed == 2:
        content, fits = read_digested(file, LIMIT)
        assert fits is True
        assert content == (b"after" if completed == 2 else b"before")
    else:
        assert not file.exists()  # and nothing is taken for one


def test_a_file_of_an_older_tool_is_replaced_in_the_same_way(file: Path) -> None:
    digest_beside(file).unlink()

    def write(path: Path, content: bytes) -> None:
        if path == file:
            raise Killed
        atomic_write(path, content)

    with pytest.raises(Killed):
        write_digested(file, b"after", write)
    assert read_digested(file, LIMIT) == (b"before", True)


def test_a_file_that_is_replaced_while_it_is_read_fits(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = digests.read_regular

    def meanwhile(path: Path, limit: int, *, expected: str) -> bytes:
        content = read(path, limit, expected=expected)
        monkeypatch.setattr(digests, "read_regular", read)
        write_digested(file, b"after")
        return content

    monkeypatch.setattr(digests, "read_regular", meanwhile)
    assert read_digested(file, LIMIT) == (b"after", True)


def test_an_odd_file_of_digests_is_an_error(file: Path) -> None:
    digest_beside(file).unlink()
    digest_beside(file).symlink_to("/dev/zero")
    with pytest.raises(QatvalError, match="no regular file"):
        read_digested(file, LIMIT)


def test_all_that_lies_below_is_named_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("a/b/deep", "a/.hidden", "a/.folder/in", "one", "other"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(random.randbytes(9))
    found = digests_of(tmp_path, [tmp_path / "one", tmp_path / "a", tmp_path / "absent"])
    assert found == {
        "a/b/deep": FileDigest.of(tmp_path / "a/b/deep"),
        "one": FileDigest.of(tmp_path / "one"),
    }
