"""``qatval export``: one file, the same every time; for everything else one line and no file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from qatval.cli.export import report
from qatval.cli.main import main
from qatval.core.digests import FileDigest
from qatval.core.summary import SUMMARY_NAME, write_summary
from qatval.deploy.card import Card, Input, Origin, Output
from qatval.deploy.export.onnx_file import Written
from qatval.testing import build_summary

WEIGHTS = "weights/float.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished FP32 run, as far as an export looks at it."""
    from qatval.train.models import CheckpointInfo, build_model, save_checkpoint

    root = tmp_path_factory.mktemp("runs") / "fp32"
    names = ("circle", "square")
    info = CheckpointInfo("float", "yolov10n.yaml", names)
    save_checkpoint(root / WEIGHTS, build_model("yolov10n.yaml", names).eval(), info)
    files = {WEIGHTS: {"bytes": 1, "sha256": FileDigest.of(root / WEIGHTS).sha256}}
    write_run(root, files=files, artifacts={"weights": WEIGHTS})
    return root


def write_run(root: Path, error: str | None = None, **changes: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    write_summary(root, build_summary("fp32", error=error, changes=changes))
    return root


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run the command, which must fail; return its one line."""
    capsys.readouterr()
    assert main(["export", *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix("qatval: error: ")


def test_the_same_run_gives_the_same_bytes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "model.onnx"
    argv = ["export", str(run), "--imgsz", "64", "--batch", "2", "--out", str(out)]
    assert main(argv) == 0
    told, content = capsys.readouterr().out, out.read_bytes()
    assert told.startswith(f"{out}: {len(content) / 1e6:.2f} MB, 100.0 % of ")
    assert "nothing is quantized" in told
    assert "int4" not in told
    (entry,) = onnxruntime.InferenceSession(out).get_inputs()
    assert entry.shape == [2, 3, 64, 64]
    assert "exists already; give another --out or --overwrite" in refused(capsys, *argv[1:])
    out.write_bytes(b"another")
    assert main([*argv, "--overwrite"]) == 0
    assert out.read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_it_says_what_int4_is_and_is_not() -> None:
    card = Card(
        version=1,
        architecture="yolov10n.yaml",
        class_names=("a",),
        input=Input(imgsz=64, batch=None),
        output=Output(head="one2one", nms_iou=None, confidence=0.001, max_detections=300),
        storage="int4",
        weight_bits={"3": 76, "4": 1, "8": 7},
        activation_bits={"4": 77},
        origin=Origin("r", "ptq", None, "0" * 64, None, None, None),
    )
    lines = list(report(Path("m.onnx"), Written(2_000_000, 10_000_000), card))
    assert lines[0] == "m.onnx: 2.00 MB, 20.0 % of 10.00 MB in float32"
    assert lines[1].startswith("weights: 76 layers with 3 bits, stored as int4, the smallest type")
    assert lines[2] == "weights: 1 layer with 4 bits, stored as int4"
    assert lines[3] == "weights: 7 layers with 8 bits, stored as int8"
    assert lines[4] == "inputs: 77 layers with 4 bits"
    assert "any number of images of 64 x 64" in lines[5]
    assert "a file format and not an execution mode" in lines[-1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root, "expected the folder of a finished run"),
        (lambda root: write_run(root, error="out of memory"), "incomplete (out of memory)"),
        (write_run, "left no weights"),
        (
            lambda root: write_run(root, artifacts={"weights": WEIGHTS}),
            "weights that the run left are missing",
        ),
        (
            lambda root: write_run(root, artifacts={"weights": "../elsewhere.safetensors"}),
            "leads out of",
        ),
    ],
    ids=["no run", "incomplete", "no weights", "missing", "outside"],
)
def test_what_is_no_delivered_run_is_one_line(
    make: Callable[[Path], Path],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = make(tmp_path / "run"), tmp_path / "model.onnx"
    assert said in refused(capsys, str(root), "--out", str(out))
    assert not out.exists()


def test_files_that_were_changed_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / WEIGHTS
    weights.parent.mkdir()
    weights.write_bytes(b"others")
    files = {WEIGHTS: {"bytes": 6, "sha256": "0" * 64}}
    write_run(tmp_path, files=files, artifacts={"weights": WEIGHTS})
    argv = (str(tmp_path), "--out", str(tmp_path / "model.onnx"))
    assert "was changed after the run wrote it: SHA-256 is" in refused(capsys, *argv)
    with (tmp_path / SUMMARY_NAME).open("a") as summary:
        summary.write(" ")
    assert f"{SUMMARY_NAME} was changed" in refused(capsys, *argv)


def test_a_side_that_does_not_fit_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = (str(run), "--out", str(tmp_path / "model.onnx"), "--imgsz")
    assert "expected a multiple of 32 pixels" in refused(capsys, *argv, "100")
    assert "got 10; give 32" in refused(capsys, *argv, "10")
    assert "expected up to 4096 pixels" in refused(capsys, *argv, "1000000")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "model.onnx")
    assert "is not a folder" in refused(capsys, str(run), "--out", below)
    said = refused(capsys, str(run), "--out", str(tmp_path), "--overwrite")
    assert "exists already; give another --out" in said


def test_a_missing_extra_is_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = refused(capsys, str(run), "--out", str(tmp_path / "model.onnx"))
    assert said.endswith("pip install 'qatval[export]'")


@pytest.mark.parametrize("batch", ["0", "many", "257"])
def test_a_batch_is_a_number_or_dynamic(batch: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        main(["export", str(tmp_path), "--out", str(tmp_path / "m.onnx"), "--batch", batch])
    assert error.value.code == 2
