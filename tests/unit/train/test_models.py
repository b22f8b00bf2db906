"""Checkpoints: official files load, everything else is refused with a reason, nothing runs."""

from __future__ import annotations

import copy
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qatval.core.errors import QatvalError
from qatval.core.presets import quantization
from qatval.quant.integer import to_integer
from qatval.quant.layers import coverage
from qatval.train.models import (
    CheckpointInfo,
    build_model,
    load_checkpoint,
    load_pretrained,
    read_info,
    save_checkpoint,
)

NAMES = ("circle", "square", "triangle")
ARCHITECTURE = "yolov10n.yaml"


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build_model(ARCHITECTURE, NAMES).eval()


@pytest.fixture(scope="module")
def official(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``.pt`` that Ultralytics itself saves: the whole model pickled in fp16."""
    from ultralytics import YOLO

    yolo = YOLO(ARCHITECTURE)
    yolo.model = copy.deepcopy(model)
    yolo.ckpt = {"model": yolo.model, "train_args": {}}
    path = tmp_path_factory.mktemp("official") / "yolov10n.pt"
    yolo.save(path)
    return path


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        prediction: torch.Tensor = model.eval()(images)[0]
    return prediction


def test_a_file_from_ultralytics_loads(official: Path, model: Any) -> None:
    loaded = load_pretrained(official, ARCHITECTURE, NAMES)
    saved = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(
            tensor, saved[name].half().float() if tensor.is_floating_point() else saved[name]
        ), name
    assert loaded.end2end
    assert loaded.names == dict(enumerate(NAMES))


class Attack:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"model": a}, lambda a: {"ema": [a]}])
def test_an_attack_is_refused_and_nothing_runs(wrap: Any, tmp_path: Path) -> None:
    target, file = tmp_path / "owned", tmp_path / "attack.pt"
    torch.save(wrap(Attack(target)), file)
    with pytest.raises(QatvalError, match=r"attack\.pt is refused: it refers to '.*system'"):
        load_pretrained(file, ARCHITECTURE, NAMES)
    assert not target.exists()


def test_a_plain_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    target, file = tmp_path / "owned", tmp_path / "attack.pt"
    file.write_bytes(pickle.dumps(Attack(target)))
    with pytest.raises(QatvalError, match=r"attack\.pt"):
        load_pretrained(file, ARCHITECTURE, NAMES)
    assert not target.exists()


def expect(path: Path, message: str, architecture: str = ARCHITECTURE, names: Any = NAMES) -> None:
    with pytest.raises(QatvalError, match=message) as caught:
        load_pretrained(path, architecture, names)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    expect(tmp_path / "no.pt", "not found: download")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_not_a_checkpoint(content: bytes, tmp_path: Path) -> None:
    for name in ("x.pt", "x.safetensors"):
        file = tmp_path / name
        file.write_bytes(content)
        expect(file, "not a loadable checkpoint|damaged")


def test_truncated(official: Path, model: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    save_checkpoint(own, model, CheckpointInfo("float", ARCHITECTURE, NAMES))
    for file in (official, own):
        cut = tmp_path / f"cut{file.suffix}"
        cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        expect(cut, "truncated|damaged")


@pytest.mark.parametrize(
    ("value", "what"), [(float("nan"), "1 NaN"), (float("inf"), "1 infinite values")]
)
def test_weights_that_are_not_finite_are_named(
    value: float, what: str, model: Any, tmp_path: Path
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_parameter("model.3.conv.weight")[0, 0, 0, 0] = value
    own, official = tmp_path / "own.safetensors", tmp_path / "official.pt"
    save_checkpoint(own, broken, CheckpointInfo("float", ARCHITECTURE, NAMES))
    torch.save({"model": broken}, official)
    for file in (own, official):
        expect(file, f"is damaged: 'model.3.conv.weight' holds {what} among [0-9]+ values")


def test_tensors_without_a_model(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"weights": torch.ones(3)}, file)
    expect(file, "expected a model under 'ema' or 'model'")


def test_wrong_architecture(official: Path) -> None:
    expect(official, "of another (architecture|size)", architecture="yolov10s.yaml")


def test_wrong_number_of_classes(official: Path) -> None:
    expect(official, "detects 3 classes, the dataset has 2: give", names=("a", "b"))
    message = "the dataset has 4, 'b' among them more than once: give"
    expect(official, message, names=("a", "b", "c", "b"))


def test_other_kind_of_file(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.touch()
    expect(file, r"expected a \.pt or \.safetensors")


def test_own_file_without_metadata(tmp_path: Path) -> None:
    import safetensors.torch

    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, file)
    expect(file, "holds no qatval metadata")


def test_quantized_weights_are_no_starting_point(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    info = CheckpointInfo("latent", ARCHITECTURE, NAMES, quantization("w4a16"))
    save_checkpoint(file, model, info)
    expect(file, "holds latent weights: expected an FP32")


@pytest.mark.parametrize("preset", ["w4a16", "paper"])
@pytest.mark.parametrize("kind", ["latent", "integer"])
def test_every_quantized_kind_comes_back_bit_for_bit(
    kind: Any, preset: str, quantized_yolo10n: Callable[[str], Any], tmp_path: Path
) -> None:
    model = quantized_yolo10n(preset)
    if kind == "integer":
        model = to_integer(model)
    info = CheckpointInfo(kind, ARCHITECTURE, NAMES, quantization(preset))
    comes_back(model, info, tmp_path / "x.safetensors")


def test_a_float_model_comes_back_bit_for_bit(model: Any, tmp_path: Path) -> None:
    comes_back(model, CheckpointInfo("float", ARCHITECTURE, NAMES), tmp_path / "x.safetensors")


def comes_back(model: Any, info: CheckpointInfo, file: Path) -> None:
    save_checkpoint(file, model, info)

    assert read_info(file) == info
    assert torch.equal(answer(load_checkpoint(file)), answer(model))


def test_yolo10n_has_107_quantized_layers(quantized_yolo10n: Callable[[str], Any]) -> None:
    """Of a preset with one scale a layer, but for the twelve outputs without BatchNorm."""
    layers = coverage(quantized_yolo10n("paper"), quantization("paper"))
    bits = Counter(layer.bits for layer in layers)
    assert bits == {4: 94, 8: 13, None: 1}
    assert [layer.name for layer in layers if layer.reason] == ["model.23.dfl.conv"]
    per_channel = [layer.name for layer in layers if layer.scale == "per-channel"]
    assert len(per_channel) == 12
    assert all(name.startswith("model.23.") and name.endswith(".2") for name in per_channel)
    at_8_bits = [layer.name for layer in layers if layer.bits == 8]
    assert at_8_bits == ["model.0.conv", *per_channel]
