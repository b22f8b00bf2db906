"""What is no file of qatval's is refused in one line, before any runtime sees it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.deploy.files import card, network, write_file

from qatval.core.errors import QatvalError
from qatval.deploy.card import Input
from qatval.deploy.model_file import LARGEST_SIDE, MOST_CARD_BYTES, _fields, read_card


def refused(path: Path) -> str:
    with pytest.raises(QatvalError) as caught:
        read_card(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


def test_the_card_of_a_file(tmp_path: Path) -> None:
    assert read_card(write_file(tmp_path / "a.onnx")) == card()


def test_a_file_that_is_missing_or_none(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in refused(tmp_path / "a.onnx")
    assert "cannot be read (Is a directory)" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(tmp_path / "pipe")


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for content in (b"", b"PK\3\4" + bytes(100), b"<html>no such model</html>", b"\x89PNG\r\n"):
        path.write_bytes(content)
        assert "ONNX file" in refused(path)


def test_a_file_that_is_cut_short_anywhere(tmp_path: Path) -> None:
    content = write_file(tmp_path / "a.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(content), 37):
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content[:-1])
    assert "1 bytes are missing at its end" in refused(path)


def test_a_file_of_another_producer(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(network().SerializeToString())
    assert "does not say how it is to be fed" in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "its card cannot be used"),
        (b"no JSON", "is not valid JSON"),
        (b"[" * 100_000, "its card cannot be used"),
        (msgspec.json.encode(card()).replace(b'"version":1', b'"version":2'), "version"),
        (msgspec.json.encode(card()).replace(b'"imgsz":32', b'"imgsz":-32'), "imgsz"),
        (b" " * (MOST_CARD_BYTES + 1), "at most 1,048,576 are read"),
    ],
    ids=["empty", "no JSON", "deep", "newer", "impossible", "large"],
)
def test_cards_that_cannot_be_used(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refused(write_file(tmp_path / "a.onnx", content))


def test_images_that_nobody_could_hold(tmp_path: Path) -> None:
    large = card(input=Input(imgsz=LARGEST_SIDE + 1, batch=1))
    assert "at most 8192 are run" in refused(write_file(tmp_path / "a.onnx", large))


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_no_message(content: bytes) -> None:
    try:
        fields = list(_fields(memoryview(content)))
    except ValueError:
        return
    assert sum(len(value) for _, value in fields) <= len(content)
