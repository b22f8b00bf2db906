"""`qatval predict` on the user's own pictures, which stay as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.images import encoded, png_of
from tests.unit.deploy.files import write_file

from qatval.cli.main import main
from qatval.deploy import pictures
from qatval.deploy.pictures import drawn

Predict = Callable[..., int]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Run the command on a file, in a folder of pictures of its own."""
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "model.onnx")
    (tmp_path / "mine").mkdir()
    for name, content in {
        "a.jpg": encoded("JPEG"),
        "a.png": encoded("PNG", "L"),
        "b.WEBP": encoded("WEBP"),
        "turned.jpeg": encoded("JPEG", orientation=6),
        "notes.txt": b"no picture",
    }.items():
        (tmp_path / "mine" / name).write_bytes(content)
    return lambda *words: main(["predict", "model.onnx", *map(str, words), "--conf", "0.001"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_picture_of_a_folder_gets_a_copy_and_a_line(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path / "mine")
    assert predict("mine", "mine/a.jpg") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"ok  mine/{name}" for name in ("a.jpg", "a.png", "b.WEBP", "turned.jpeg")
    ]
    assert all("circle -> predictions/" in line for line in lines)
    assert contents(tmp_path / "mine") == before
    out = tmp_path / "predictions"
    copies = ["a-2.jpg", "a.jpg", "b.jpg", "turned.jpg"]
    assert sorted(contents(out)) == sorted([*copies, "predictions.json"])
    assert Image.open(out / "turned.jpg").size == (24, 40)  # upright
    plain = np.asarray(Image.open(tmp_path / "mine" / "a.jpg"), int)
    assert np.abs(np.asarray(Image.open(out / "a.jpg"), int) - plain).max() > 100


def test_the_same_in_numbers(predict: Predict, tmp_path: Path) -> None:
    assert predict("mine/turned.jpeg", "--out", "out") == 0
    (told,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (told["image"], told["drawn"]) == ("mine/turned.jpeg", "turned.jpg")
    assert (told["height"], told["width"]) == (40, 24)
    assert told["detections"]
    scores = [detection["score"] for detection in told["detections"]]
    assert scores == sorted(scores, reverse=True)
    for detection in told["detections"]:
        x, y, width, height = detection["box"]
        assert detection["class"] == "circle"
        assert x >= 0 <= y
        assert width > 0 < height
        assert x + width <= 24.01
        assert y + height <= 40.01


def test_unreadable_pictures_are_named_and_the_rest_goes_on(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (tmp_path / "mine" / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    bad = ["cut.jpg", "bomb.png", "mine/notes.txt", "none.jpg", "loop.jpg"]
    assert predict(*bad, "mine/a.jpg") == 1
    captured = capsys.readouterr()
    *named, last = captured.out.splitlines()
    assert [line.split(":")[0] for line in named] == [f"NO  {path}" for path in bad]
    assert last.startswith("ok  mine/a.jpg")
    assert captured.err == ""
    assert predict("none.jpg") == 1
    assert "no picture of 1 could be read" in capsys.readouterr().err


def test_names_that_json_or_another_file_system_does_not_take(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "mine" / "a.jpg"
    odd = [os.fsdecode(b"mine/\xff.jpg"), f"mine/{'y' * 250}.jpg", f"mine/{'é' * 125}.jpg"]
    for name in odd:
        (tmp_path / name).write_bytes(picture.read_bytes())
    assert predict(*odd) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(odd)
    told = json.loads((tmp_path / "predictions" / "predictions.json").read_text("utf-8"))
    assert [t["image"] for t in told] == ["mine/\ufffd.jpg", *odd[1:]]
    assert [t["drawn"] for t in told] == ["?.jpg", f"{'y' * 200}.jpg", f"{'é' * 100}.jpg"]
    assert all((tmp_path / "predictions" / t["drawn"]).is_file() for t in told)


def test_of_a_folder_only_what_a_user_sees_as_pictures(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "._a.jpg").write_bytes(b"what macOS leaves on other file systems")
    (tmp_path / "mine" / "album.jpg").mkdir()
    (tmp_path / "mine" / "same.jpg").symlink_to("a.jpg")
    assert predict("mine", "mine/../mine/a.jpg") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_what_an_interruption_leaves_can_be_written_over(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        calls = iter([drawn])
        patched.setattr(pictures, "drawn", lambda *words: next(calls)(*words))
        with pytest.raises(StopIteration):
            predict("mine")
    (told,) = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert told["drawn"] == "a.jpg"
    assert predict("mine") == 0


def test_nothing_of_the_user_s_is_written_over(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path / "mine")
    assert predict("mine/a.jpg", "--out", "mine") == 1
    assert "holds other files" in capsys.readouterr().err
    assert predict("mine/a.jpg") == 0
    assert predict("mine/a.jpg") == 0  # of an earlier call: written anew
    assert predict("predictions/a.jpg") == 1
    assert "lies in predictions" in capsys.readouterr().err
    assert predict("predictions/a.jpg", "--out", "again") == 0
    assert contents(tmp_path / "mine") == before


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["empty"], "no picture is in this folder", 1),
        (["mine/a.jpg", "--out", "model.onnx/x"], "cannot write to", 1),
    ],
)
def test_wrong_words(
    predict: Predict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
    code: int,
) -> None:
    (tmp_path / "empty").mkdir()
    assert predict(*words) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_run_is_run_by_torch_alone(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "mine", "mine/a.jpg"]) == 1
    assert "expected the folder of a finished run" in capsys.readouterr().err
    assert main(["predict", "mine", "mine/a.jpg", "--runtime", "openvino"]) == 2
    assert "which torch runs" in capsys.readouterr().err


@pytest.mark.parametrize("confidence", ["1", "-0.1", "nan", "much"])
def test_scores_that_are_none(predict: Predict, confidence: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["predict", "model.onnx", "mine", "--conf", confidence])
    assert caught.value.code == 2
