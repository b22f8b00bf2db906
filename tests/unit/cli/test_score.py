"""`qatval score` as a user runs it, on a machine with a runtime alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.unit.deploy.files import card, write_file

from qatval.cli.main import main
from qatval.core.deployment import RuntimeRecord
from qatval.data.shapes import draw_dataset
from qatval.data.subset import Subset, build_subset
from qatval.deploy import measuring

# What a machine that only runs exported files does not have.
FORBIDDEN = (
    *("torch", "torchvision", "ultralytics", "brevitas", "safetensors", "tensorboard"),
    *("onnx", "onnxscript", "scipy", "matplotlib", "jinja2", "platformdirs", "yaml"),
)
WITHOUT = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from qatval.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Subset:
    root = tmp_path_factory.mktemp("data")
    draw_dataset(root / "shapes", train_images=2, val_images=6, size=64)
    return build_subset(
        root / "shapes", train_images=None, val_images=4, seed=0, cache_dir=root / "cache"
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)


def exported(folder: Path, subset: Subset, value: float | None) -> Path:
    """Write a file of a run that scored this value."""
    usual = card(class_names=subset.class_names)
    origin = msgspec.structs.replace(
        usual.origin, value=value, val_images=4, dataset=dict(subset.identity)
    )
    return write_file(folder / "a.onnx", msgspec.structs.replace(usual, origin=origin))


def test_it_needs_neither_torch_nor_what_a_training_needs(subset: Subset, tmp_path: Path) -> None:
    path, out = exported(tmp_path, subset, 0.0), tmp_path / "out.json"
    words = ["score", str(path), "--coco-root", str(subset.coco_root), "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "images        4, the run's" in ended.stdout
    assert "mAP 50-95     0.000, the run's 0.000: +0.000" in ended.stdout
    assert "convolutions  1 in float32" in ended.stdout
    assert "int4 weights are how the file is stored, not how it is computed" in ended.stdout
    record = msgspec.json.decode(out.read_bytes(), type=RuntimeRecord)
    assert (record.name, record.value, record.agreement) == ("onnxruntime", 0.0, None)
    assert (record.latency.threads, record.executed) == (1, {"float32": 1})


def test_a_file_that_does_not_score_what_the_run_says(
    subset: Subset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported(tmp_path, subset, 0.5)
    words = ["score", str(path), "--coco-root", str(subset.coco_root)]
    assert main(words) == 1
    assert "NO  the file does not score what the run says: -0.500" in capsys.readouterr().out
    assert main([*words, "--val-images", "3"]) == 0  # other images say nothing of the run's value
    told = capsys.readouterr().out
    assert "3, not known to be the run's" in told
    assert "mAP 50-95     0.000\n" in told
    assert main([*words, "--runtime", "openvino"]) == 1


def test_a_run_s_own_files_and_its_detections(
    subset: Subset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = exported(tmp_path, subset, None), tmp_path / "out.json"
    own = ["--annotations", str(subset.val_annotations), "--images", str(subset.val.image_dir)]
    words = ["score", str(path), *own, "--threads", "2"]
    found = tmp_path / "found.json"
    assert main([*words, "--detections", str(found)]) == 0
    detections = json.loads(found.read_text())
    assert len(detections) > 10
    assert main([*words, "--against", str(found), "--out", str(out)]) == 0
    agreement = json.loads(out.read_text())["agreement"]
    assert agreement["detections"] == len(detections)
    assert agreement["unmatched"] == 0
    assert "2 threads" in capsys.readouterr().out
    assert main([*words, "--against", str(found), "--out", str(out), "--val-images", "2"]) == 0
    assert json.loads(out.read_text())["agreement"]["unmatched"] == 0  # of the others nothing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--annotations", "a.json"], "give both or neither"),
        (["--coco-root", "nowhere"], "no such annotation file"),
        (["--against", "a.onnx"], "holds no detections"),
        (["--against", "none.json"], "cannot be read"),
        (["--against", "flat.json"], "holds no detections"),
        (["--against", "others.json"], "has no detection on the 4 images that are scored"),
        (["--out", "a.onnx"], "cannot be written over"),
        (["--detections", "a.onnx/b.json"], "cannot write"),
    ],
)
def test_wrong_words(
    subset: Subset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    exported(tmp_path, subset, None)
    detection = {"image_id": 9999, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "others.json").write_text(json.dumps([detection]))
    (tmp_path / "flat.json").write_text(json.dumps([detection | {"bbox": [1, 2]}]))
    monkeypatch.chdir(tmp_path)
    root = [] if "--coco-root" in words else ["--coco-root", str(subset.coco_root)]
    assert main(["score", "a.onnx", *root, *words]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_image_that_is_damaged_inside(
    subset: Subset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported(tmp_path, subset, None)
    shutil.copytree(subset.coco_root, tmp_path / "data")
    image = tmp_path / "data" / "val2017" / subset.val.file_names[0]
    content = image.read_bytes()
    image.write_bytes(content[: content.index(b"\xff\xda")] + content[-2:])  # no pixels
    assert main(["score", str(path), "--coco-root", str(tmp_path / "data")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be decoded" in line
