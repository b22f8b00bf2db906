"""Which layer hurts: the one that was hurt on purpose, found in a run folder as runs leave it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from qatval.cli.main import main
from qatval.core.files import sha256_of
from qatval.core.presets import quantization, variant
from qatval.core.progress import Progress
from qatval.core.summary import load_summary, write_summary
from qatval.data.shapes import draw_dataset
from qatval.data.subset import build_subset
from qatval.quant.anchoring import Anchor
from qatval.quant.integer import integer_layers, to_integer
from qatval.quant.layers import insert_quantizers
from qatval.run import sensitivity as sensitivity_module
from qatval.run.sensitivity import By, Sensitivity, sensitivity
from qatval.testing import build_summary, changed
from qatval.train.evaluation import evaluator
from qatval.train.models import CheckpointInfo, Kind, load_pretrained, save_checkpoint

CLASSES = ("circle", "square", "triangle", "cross", "ring", "star")
W8 = dataclasses.replace(quantization("w4a16"), weight_bit_width=8)
"""So fine that what is made coarse in one layer is all that there is to find."""
HURT = "model.23.one2one_cv3.0.0.1.conv"
IMAGES = 8
SPREAD = np.linspace(-0.01, 0.01, 5)
"""Of made-up scores over resamples of the images, as shares of them."""
CHECKPOINT = variant("yolo10n").embedded_checkpoint
assert CHECKPOINT is not None


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded dataset."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root, train_images=4, val_images=IMAGES, size=64)
    return root


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run root of a training that left the checkpoint, one layer of it rounded coarsely."""
    root = tmp_path_factory.mktemp("runs") / "baseline"
    model = load_pretrained(CHECKPOINT, "yolov10n.yaml", CLASSES)
    insert_quantizers(model, W8)
    integer = to_integer(model)
    codes = integer_layers(integer)[HURT].codes
    codes.copy_((codes / 100).round() * 100)
    weights = root / "ultralytics" / "train" / "weights"
    made_of: dict[str, tuple[Kind, nn.Module]] = {
        "last": ("latent", model),
        "integer": ("integer", integer),
    }
    for name, (kind, made) in made_of.items():
        info = CheckpointInfo(kind, "yolov10n.yaml", CLASSES, W8)
        save_checkpoint(weights / f"{name}.safetensors", made, info)
    annotations = shapes / "annotations" / "instances_val2017.json"
    ids = sorted(image["id"] for image in json.loads(annotations.read_bytes())["images"])
    (root / "dataset").mkdir()
    (root / "dataset" / "val_images.txt").write_text("".join(f"{number}\n" for number in ids))
    summary = build_summary(
        "baseline",
        mode="w8a16",
        changes={
            "model": {"imgsz": 64, "checkpoint": str(CHECKPOINT)},
            "artifacts": {"weights": "ultralytics/train/weights/integer.safetensors"},
            "dataset": {
                "coco_root": str(shapes),
                "identity": {"annotations": {"val": sha256_of(annotations)}},
            },
        },
    )
    write_summary(root, summary)
    return root


@pytest.fixture
def spoiled(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def score(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Sensitivity]:
    cache = tmp_path_factory.mktemp("cache")

    def run(
        root: Path = finished, *, by: By = "head", images: int | None = None, **at: Path
    ) -> Sensitivity:
        return sensitivity(
            root,
            by=by,
            coco_root=at.get("coco_root"),
            checkpoint=at.get("checkpoint"),
            images=images,
            device="cpu",
            cache_dir=cache,
            progress=Progress("", quiet=True),
        )

    return run


@pytest.fixture(scope="module")
def of_branches(score: Callable[..., Sensitivity]) -> Sensitivity:
    return score()


def test_the_branch_that_was_hurt_comes_first(of_branches: Sensitivity) -> None:
    names = [part.name for part in of_branches.parts]
    assert names[0] == "model.23.one2one_cv3 (classes)"
    assert set(names[1:]) == {"model.23.one2one_cv2 (boxes)", "before the head"}
    assert HURT in of_branches.parts[0].layers
    gains = [part.gain for part in of_branches.parts]
    assert gains[0] > 0.05
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == pytest.approx(of_branches.all_in_float.gain, abs=0.03)
    assert all(abs(gain) < 0.03 for gain in gains[1:])


def test_parts_cover_what_answers_once(of_branches: Sensitivity) -> None:
    layers = [layer for part in of_branches.parts for layer in part.layers]
    assert len(layers) == len(set(layers)) == 83
    assert len(of_branches.idle) == 24
    assert not set(layers) & set(of_branches.idle)
    assert sum(part.share for part in of_branches.parts) == pytest.approx(1.0)
    assert all(part.weight_bits == (8,) for part in of_branches.parts)
    assert all(part.activation_bits == () for part in of_branches.parts)


def test_a_gain_has_the_error_of_the_difference(of_branches: Sensitivity) -> None:
    """Scores of one model and nearly the same one move together over the images."""
    hurt, *others = of_branches.parts
    assert all(part.standard_error < of_branches.delivered_error / 2 for part in others)
    assert hurt.standard_error > 0
    assert hurt.p_value < min(part.p_value for part in others)
    for part in of_branches.parts:
        assert part.gain == pytest.approx(part.value - of_branches.delivered)


def test_what_nothing_trained_is_the_checkpoint_with_everything_in_float(
    of_branches: Sensitivity,
    shapes: Path,
    spoiled: Path,
    score: Callable[..., Sensitivity],
    tmp_path: Path,
) -> None:
    (spoiled / "ultralytics" / "train" / "weights" / "last.safetensors").unlink()
    write_summary(spoiled, changed(load_summary(spoiled), {"method": {"training": "none"}}))
    found = score(spoiled, checkpoint=CHECKPOINT)
    subset = build_subset(shapes, train_images=4, val_images=None, seed=0, cache_dir=tmp_path)
    arguments = {"imgsz": 64, "batch": 16, "device": "cpu"}
    scorer = evaluator(subset, arguments, torch.device("cpu"), tmp_path)
    in_float = scorer.evaluate(load_pretrained(CHECKPOINT, "yolov10n.yaml", CLASSES))
    assert found.all_in_float.value == in_float.value
    assert found.delivered == of_branches.delivered
    assert (found.statistics, found.calibration_images) == ("kept", 0)
    assert (of_branches.statistics, of_branches.calibration_images) == ("moved", 4)


def test_only_statistics_that_fit_rounded_weights_are_moved() -> None:
    fit = sensitivity_module._fit_to_rounding
    untrained = build_summary("ptq")
    assert not fit(untrained.method)
    assert fit(changed(untrained, {"method": {"bn": {"enabled": True}}}).method)
    assert fit(build_summary("baseline").method)
    assert fit(build_summary("ema+qc").method)


def test_a_model_with_something_in_float_has_its_statistics_moved() -> None:
    settled: list[nn.Module] = []
    anchor = cast("Anchor", SimpleNamespace(settle=settled.append))
    delivered, layer = nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Conv2d(1, 1, 1)
    sensitivity_module._variant(delivered, anchor, {})
    sensitivity_module._variant(delivered, None, {"0": layer})
    assert settled == []
    made = sensitivity_module._variant(delivered, anchor, {"0": layer})
    assert settled == [made]
    assert made.get_submodule("0") is layer
    assert delivered[0] is not layer


@pytest.fixture
def scored_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float]], None]:
    """Return a function that gives each layer a gain; a model has that of its layers in float."""

    def patch(gains: Mapping[str, float]) -> None:
        def scores(*given: object) -> Iterator[sensitivity_module._Scored]:
            replaced = given[-1]
            assert isinstance(replaced, list)
            for layers in replaced:
                value = 0.25 + sum(gains.get(name, 0.0) for name in layers)
                yield sensitivity_module._Scored(value, value, value * (1 + SPREAD))

        monkeypatch.setattr(sensitivity_module, "_scores", scores)

    return patch


def test_layers_come_by_gain_and_those_alike_in_the_models_order(
    score: Callable[..., Sensitivity], scored_as: Callable[[Mapping[str, float]], None]
) -> None:
    scored_as({"model.6.cv1.conv": 0.25, "model.0.conv": -0.125, "model.23.cv2.0.2": 1.0})
    found = score(by="layer", images=4)
    names = [part.name for part in found.parts]
    assert len(names) == 83
    assert (names[0], names[-1]) == ("model.6.cv1.conv", "model.0.conv")
    assert names[1:3] == ["model.1.conv", "model.2.cv1.conv"]
    assert [part.gain for part in (found.parts[0], found.parts[1])] == [0.25, 0.0]
    assert found.parts[0].standard_error == pytest.approx(0.25 * SPREAD.std(ddof=1))
    assert found.parts[0].p_value < 0.05
    assert all(part.p_value == 1.0 for part in found.parts[1:-1])
    assert (found.images, found.of_images) == (4, IMAGES)


def test_what_the_interpolation_alone_gains_is_no_evidence() -> None:
    """Seen: .00017 with an error of .000004, of which no resample showed anything."""
    scored = sensitivity_module._Scored
    delivered = scored(0.5, 0.5, 0.5 + SPREAD)
    alike = sensitivity_module._gain(scored(0.5002, 0.5, 0.5 + SPREAD * 1.001), delivered)
    assert alike.gain == pytest.approx(0.0002)
    assert 0 < alike.standard_error < 0.00001
    assert sensitivity_module._p_value(alike, IMAGES) == 1.0
    better = sensitivity_module._gain(scored(0.5002, 0.5002, 0.5 + SPREAD * 1.001), delivered)
    assert sensitivity_module._p_value(better, IMAGES) < 0.001


def test_a_block_is_all_layers_of_one_number(of_branches: Sensitivity) -> None:
    layers = [layer for part in of_branches.parts for layer in part.layers]
    model = SimpleNamespace(model=range(24), yaml={"yaml_file": "yolov10n.yaml"})
    blocks = sensitivity_module._parts(model, layers, "block")
    assert {name for name in blocks if len(blocks[name]) == 1} == {
        f"model.{number}" for number in (0, 1, 3, 17)
    }
    for name, inside in blocks.items():
        assert inside == [layer for layer in layers if layer.startswith(f"{name}.")]


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["sensitivity", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_prints_and_writes_the_table(
    finished: Path,
    scored_as: Callable[[Mapping[str, float]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scored_as({HURT: 0.125})
    out = tmp_path / "table.json"
    options = ("--by", "head", "--out", str(out), "--cache-dir", str(tmp_path / "cache"))
    code, said, _ = command(capsys, str(finished), *options)
    assert code == 0
    lines = [line.split("  ")[1] for line in said.splitlines() if line.startswith("  ")]
    assert lines[:4] == [
        "in float",
        "nothing, as delivered",
        "everything",
        "model.23.one2one_cv3 (classes)",
    ]
    document = json.loads(out.read_bytes())
    assert document["parts"][0]["name"] == "model.23.one2one_cv3 (classes)"
    assert f"{100 * document['parts'][0]['gain']:+.2f}" in said
    assert (
        "scores 0.2500 here and 0.6400 in its run" in caplog.text
    )  # the summary's value is made up
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "incomplete", "error": {"message": "killed"}}, "the run is incomplete"),
        ({"artifacts": {"weights": None}}, "the run left no weights"),
        ({"artifacts": {"weights": "../other.safetensors"}}, "leads out of"),
        ({"dataset": {"coco_root": "nowhere"}}, "nowhere: the run's data are not there; name"),
        ({"dataset": {"identity": {"annotations": {"val": "0" * 64}}}}, "is not what the run was"),
        ({"dataset": {"identity": None}}, "does not say what its data are"),
        (
            {"method": {"training": "none"}, "model": {"checkpoint": "gone.pt"}},
            "gone.pt: the checkpoint that the run rounded is not there; name it with --checkpoint",
        ),
        (
            {"method": {"training": "none"}, "model": {"checkpoint_sha256": "0" * 64}},
            "is not the checkpoint that the run rounded: expected the SHA-256 000000000000...",
        ),
        (
            {"files": {"dataset/val_images.txt": {"bytes": 1, "sha256": "0" * 64}}},
            "val_images.txt: was changed after the run wrote it",
        ),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(
    changes: dict[str, object],
    message: str,
    spoiled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_summary(spoiled, changed(load_summary(spoiled), changes))
    out = tmp_path / "table.json"
    options = ("--out", str(out), "--cache-dir", str(tmp_path / "cache"))
    code, said, error = command(capsys, str(spoiled), *options)
    assert (code, said) == (1, "")
    errors = [line for line in error.splitlines() if line.startswith("qatval: error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not out.exists()


def test_a_float_control_has_nothing_to_score(
    spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = build_summary("fp32+ema")
    write_summary(spoiled, replace(summary, artifacts=load_summary(spoiled).artifacts))
    code, _, error = command(capsys, str(spoiled))
    assert code == 1
    assert "nothing is quantized in an FP32 control (fp32+ema)" in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "tpu", "--device must be cpu, 0 or a list such as 0,1, got 'tpu'"),
        ("--out", "/proc/no/table.json", "cannot write /proc/no/table.json"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_scored(
    option: str,
    value: str,
    message: str,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, error = command(capsys, str(finished), option, value)
    assert code > 0
    assert message in error


def test_latent_weights_of_another_model_are_refused(
    spoiled: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = spoiled / "ultralytics" / "train" / "weights"
    other = load_pretrained(CHECKPOINT, "yolov10n.yaml", CLASSES)
    save_checkpoint(
        weights / "integer.safetensors",
        other,
        CheckpointInfo("float", "yolov10n.yaml", CLASSES),
    )
    code, _, error = command(capsys, str(spoiled), "--cache-dir", str(tmp_path / "cache"))
    assert code == 1
    assert "expected integer codes, got float weights" in error
