"""Folders that cannot be written, names that no encoding has, and files of strangers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qatval.core.errors import QatvalError, from_system
from qatval.core.files import atomic_write, encoded, inside, read_regular, why_unwritable


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "to" / "be" / "made") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "below/a/file", "/proc/nowhere", "/dev/null/x"])
def test_a_folder_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").touch()
    assert why_unwritable(tmp_path / place)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert why_unwritable(tmp_path) == os.strerror(number)
    with pytest.raises(QatvalError, match=os.strerror(number)):
        atomic_write(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grün", "grün"),
        ("gr\udcc3\udcbcn", "grün"),
        ("gr\udcfcn", "gr\ufffdn"),
        ("\ud800", "?"),
    ],
)
def test_a_text_is_written_whatever_names_are_in_it(text: str, told: str) -> None:
    assert encoded(text).decode("utf-8") == told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "a disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "a disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission"),
        (OSError(errno.EROFS, "Read-only file system", "/mnt/x"), "/mnt/x: Read-only"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), "this needs torch,"),
    ],
)
def test_what_the_system_refuses_is_the_users_to_change(error: Exception, told: str) -> None:
    found = from_system(error)
    assert found is not None
    assert str(found).startswith(told)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        FileNotFoundError(errno.ENOENT, "x"),
        KeyError(),
        ModuleNotFoundError("No module named 'qatval.cord'", name="qatval.cord"),
    ],
)
def test_all_else_is_a_defect(error: Exception) -> None:
    assert from_system(error) is None


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5, expected="a note") == b"12345"
    with pytest.raises(QatvalError, match="has 5 bytes; expected a note, of at most 4"):
        read_regular(tmp_path / "file", 4, expected="a note")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "no regular file"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "No such file"),
    ],
    ids=["FIFO", "folder", "device", "circle", "nothing"],
)
def test_nothing_but_a_file_is_read(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "odd")
    with pytest.raises(QatvalError, match=reason):
        read_regular(tmp_path / "odd", 100, expected="a note")


def test_a_path_within_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to("a/../b")
    (tmp_path / "also").symlink_to("root")
    assert inside(tmp_path / "also", "link") == (tmp_path / "root" / "b").resolve()


@pytest.mark.parametrize("path", ["..", "a/../../x", "/etc/passwd", "out/file", "a\0b"])
def test_a_path_that_leads_out_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    with pytest.raises(QatvalError):
        inside(tmp_path / "root", path)
