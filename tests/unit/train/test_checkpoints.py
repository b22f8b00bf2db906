"""Files that people bring: whole ones load bit for bit, everything else is named by its cause."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qatval.core.errors import QatvalError
from qatval.train.checkpoints import read_torch_file
from qatval.train.models import build_model, load_matched

ARCHITECTURE = "yolov10n.yaml"
NAMES = ("circle", "square", "triangle")
OLD = {"_use_new_zipfile_serialization": False}

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Any:
    """A model whose weights are fp16's, so that every kind of storage holds them exactly."""
    torch.manual_seed(0)
    made = build_model(ARCHITECTURE, NAMES).half().float()
    made.eval()
    return made


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(content: Any, **how: Any) -> Path:
        path = tmp_path / "brought.pt"
        with warnings.catch_warnings():  # of classes whose source the old container looks for
            warnings.simplefilter("ignore")
            torch.save(content, path, **how)
        return path

    return save


def half(model: Any) -> Any:
    return copy.deepcopy(model).half()


def noise(model: Any) -> Any:
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.constant_(parameter, 7.0)
    return other


def prefixed(prefix: str, model: Any) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


class Average:
    """An average as trainers of old keep it: an object around the model."""

    __module__ = "ultralytics.utils.torch_utils"
    __qualname__ = "ModelEMA"

    def __init__(self, model: Any) -> None:
        self.ema, self.updates = model, 3


NAMED: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "numpy float32": (lambda m: {"model": m, "best_fitness": np.float32(0.5)}, {}),
    "numpy float64": (lambda m: {"model": m, "best_fitness": np.float64(0.5)}, {}),
    "numpy int64 and bool": (lambda m: {"model": m, "a": np.int64(1), "b": np.bool_(True)}, {}),
    "numpy array": (lambda m: {"model": m, "curve": np.arange(9.0)}, {}),
    "numpy in the old container": (lambda m: {"model": m, "fitness": np.float32(1)}, OLD),
    "paths and dates": (lambda m: {"model": m, "save_dir": Path("runs"), "t": {1, 2}}, {}),
    "old container": (lambda m: {"model": m}, OLD),
    "old container, half": (lambda m: {"model": half(m)}, OLD),
    "old container, bare": (lambda m: m, OLD),
    "average first": (lambda m: {"ema": m, "model": noise(m), "epoch": 3}, {}),
    "no average": (lambda m: {"ema": None, "model": half(m)}, {}),
    "half average": (lambda m: {"ema": half(m), "model": noise(m)}, OLD),
    "bare": (lambda m: m, {}),
    "bare half": (half, {}),
    "double": (lambda m: {"model": copy.deepcopy(m).double()}, {}),
    "wrapped for several GPUs": (lambda m: {"model": nn.DataParallel(m)}, {}),
    "frozen": (lambda m: {"model": copy.deepcopy(m).requires_grad_(False)}, {}),
    "pickle protocol 4": (lambda m: {"model": m}, {"pickle_protocol": 4}),
}

UNNAMED: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "state dict": (lambda m: m.state_dict(), {}),
    "state dict, old container": (lambda m: m.state_dict(), OLD),
    "state dict, half": (lambda m: half(m).state_dict(), {}),
    "state dict under model": (lambda m: {"model": m.state_dict(), "optimizer": {}}, {}),
    "state dict under state_dict": (lambda m: {"state_dict": m.state_dict()}, {}),
    "average as a state dict": (
        lambda m: {"model": noise(m).state_dict(), "ema": {"module": m.state_dict(), "updates": 3}},
        {},
    ),
    "module.": (lambda m: {"model": prefixed("module.", m)}, {}),
    "model. of the YOLO class": (lambda m: prefixed("model.", m), {}),
    "compiled": (lambda m: prefixed("_orig_mod.", m), {}),
    "compiled for several GPUs": (lambda m: prefixed("module._orig_mod.", m), OLD),
    "the layers alone": (lambda m: m.model.state_dict(), {}),
}


@pytest.mark.parametrize("kind", [*NAMED, *UNNAMED])
def test_a_whole_file_loads_bit_for_bit(kind: str, model: Any, save: Save) -> None:
    make, how = (NAMED | UNNAMED)[kind]
    loaded, match = load_matched(save(make(model), **how), ARCHITECTURE, NAMES)
    assert match.kind == ("same" if kind in NAMED else "unknown")
    found = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_bfloat16_loads_as_it_is(model: Any, save: Save) -> None:
    saved = copy.deepcopy(model).bfloat16()
    loaded, _ = load_matched(save({"model": saved}), ARCHITECTURE, NAMES)
    found = loaded.state_dict()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(found[name], tensor.float()), name


def test_an_object_around_the_average_is_looked_into(
    model: Any, save: Save, monkeypatch: Any
) -> None:
    from ultralytics.utils import torch_utils

    monkeypatch.setattr(torch_utils, "ModelEMA", Average)
    path = save({"ema": Average(model), "model": noise(model)})
    monkeypatch.undo()
    loaded, _ = load_matched(path, ARCHITECTURE, NAMES)
    assert torch.equal(loaded.state_dict()["model.0.conv.weight"], model.model[0].conv.weight)


def test_names_may_lie_beside_a_state_dict_or_be_a_list(model: Any, save: Save) -> None:
    state = model.state_dict()
    for names in (list(NAMES), dict(enumerate(NAMES))):
        path = save({"state_dict": state, "names": names})
        assert load_matched(path, ARCHITECTURE, NAMES)[1].kind == "same"
    for names in ({1: "a", 2: "b", 3: "c"}, ["a", "b"], "abc", {}):
        path = save({"state_dict": state, "names": names})
        assert load_matched(path, ARCHITECTURE, NAMES)[1].kind == "unknown"


def test_classes_that_do_not_exist_here_are_no_obstacle(model: Any, save: Save) -> None:
    """A checkpoint of another Ultralytics refers to what this one has moved or dropped."""
    path = save({"model": model})
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    old, new = b"ultralytics.nn.modules.block\nC2fCIB\n", b"ultralytics.nn.modules\nDropped\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content.replace(old, new))
    load_matched(path, ARCHITECTURE, NAMES)


def expect(path: Path, says: str) -> str:
    with pytest.raises(QatvalError, match=says) as caught:
        load_matched(path, ARCHITECTURE, NAMES)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@functools.cache
def fused(architecture: str) -> Any:
    return build_model(architecture, NAMES).eval().fuse(verbose=False)


@pytest.mark.parametrize("content", [lambda m: {"model": m}, lambda m: m, lambda m: m.state_dict()])
@pytest.mark.parametrize("architecture", ["yolov10n.yaml", "yolo11n.yaml", "yolo26n.yaml"])
def test_a_fused_model_is_refused_by_that(content: Any, architecture: str, save: Save) -> None:
    path = save(content(fused(architecture)))
    with pytest.raises(QatvalError, match=r"is fused: \d+ BatchNorm layers are folded"):
        load_matched(path, architecture, NAMES)


def test_tensors_that_fit_a_model_that_computes_something_else(model: Any, save: Save) -> None:
    other = copy.deepcopy(model)
    other.model[0].act = nn.ReLU()
    expect(save({"model": other}), r"its 'model\.0\.act' is ReLU, expected SiLU")
    other = copy.deepcopy(model)
    other.model[1].bn.eps = 1e-5
    expect(save({"model": other}), r"'model\.1\.bn' has eps 1e-05, expected 0\.001")
    other.model[1].bn = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model.model[1].bn))
    load_matched(save({"model": other}), ARCHITECTURE, NAMES)


class Mine:
    """A class of the user's own."""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": Mine()}, r"refers to '.*test_checkpoints\.Mine'"),
        ({"hook": eval}, "refers to 'builtins.eval'"),
        ({"hook": io.open}, "refers to 'io.open'"),
        ({"hook": torch.load}, "refers to 'torch.serialization.load'"),
    ],
)
@pytest.mark.parametrize("how", [{}, OLD])
def test_what_no_checkpoint_has_a_use_for_is_refused(
    content: Any, says: str, how: Any, save: Save
) -> None:
    expect(save(content, **how), f"is refused: it {says}")


def test_nothing_that_is_allowed_is_called(
    model: Any, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, called = save({"model": model}), []
    for kind in (type(model), nn.Conv2d, nn.BatchNorm2d, nn.SiLU):
        monkeypatch.setattr(
            kind, "__setstate__", lambda self, state: called.append(type(self)), raising=False
        )
    assert read_torch_file(path).class_names == NAMES
    assert called == []


def test_a_pickle_cannot_change_what_it_names(save: Save) -> None:
    """BUILD on a class, or on what stands for one, would be the way to patch it."""
    head = b"\x80\x02"
    for named in (b"cultralytics.nn.tasks\nDetectionModel\n", b"ccollections\nOrderedDict\n"):
        # class, (None, {"move_to_end": class}), BUILD: setattr(class, ...)
        content = head + named + b"(N}X\x0b\x00\x00\x00move_to_end" + named + b"s" + b"tb."
        path = save({})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", content)
            archive.writestr("x/version", "3\n")
        expect(path, "is damaged: expected a pickle as torch.save writes it")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "_qtensor"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "_rebuild_tensor_v3"),
        (lambda: torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
        (lambda: np.ones(3), "numpy.*_reconstruct"),
    ],
    ids=["quantized", "fp8", "sparse", "numpy"],
)
@pytest.mark.filterwarnings("ignore")
def test_other_tensors_are_named(tensor: Any, says: str, save: Save) -> None:
    expect(save({"model.0.conv.weight": tensor()}), f"'model.0.conv.weight' is no plain .*{says}")


def test_a_model_of_modelopt_is_no_start(model: Any, save: Save) -> None:
    expect(save({"model": model, "modelopt": {"mode": "int8"}}), "was quantized with modelopt")


@pytest.fixture(scope="module")
def containers(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole file in either container; the old one takes half a second to write."""
    made = {}
    for kind, how in (("zip", {}), ("old", OLD)):
        path = tmp_path_factory.mktemp("whole") / "model.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save({"model": model}, path, **how)
        made[kind] = path.read_bytes()
    return made


@pytest.mark.parametrize("kind", ["zip", "old"])
@pytest.mark.parametrize("share", [0.999, 0.5, 0.02, 0.001])
def test_a_truncated_file_is_called_that(
    kind: str, share: float, containers: dict[str, bytes], tmp_path: Path
) -> None:
    whole, path = containers[kind], tmp_path / "brought.pt"
    path.write_bytes(whole[: int(len(whole) * share)])
    expect(path, "is truncated: .*; copy or download it again")


@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
def test_a_damaged_record_is_named(record: str, model: Any, save: Save) -> None:
    path = save({"model": model})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(f"/{record}")]
        at = content.index(archive.read(name))
    content[at + 2] ^= 0xFF
    path.write_bytes(content)
    expect(path, f"is damaged: .*{record}")


def test_a_whole_file_without_checksums_is_not_called_damaged(model: Any, save: Save) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"model": model})
    finally:
        torch.serialization.set_crc32_options(True)
    expect(path, "was saved with torch's checksums switched off")


def test_what_follows_a_whole_file_is_ignored(containers: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "brought.pt"
    for whole in containers.values():
        path.write_bytes(whole + b"\n")
        load_matched(path, ARCHITECTURE, NAMES)


def archive_of(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in files.items():
            archive.writestr(name, value)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty; copy or download"),
        (b"\x08\x0a\x12\x07pytorch\x1a\x052.5.0:" + bytes(99), r"an export \(ONNX\)"),
        (b"\x10\x01\0\0" + b'{"description": "YOLO"}', "a TensorRT engine"),
        (b"ftrt\0\0\0\0", "a TensorRT engine"),
        (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
        (archive_of(**{"a/constants.pkl": b"", "a/data.pkl": b""}), "a TorchScript archive"),
        (archive_of(**{"a/archive_format": b"pt2"}), r"an export \(of torch\.export\)"),
        (archive_of(**{"weights/best.pt": b"x"}), "it holds 'weights/best.pt'"),
        (archive_of(**{"arr_0.npy": b"x"}), "a zip archive that torch.save did not write"),
        (struct.pack("<Q", 40) + b'{"a": {}}', "a safetensors file; let its name end in"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08" + bytes(9), "a gzip archive"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (b"\x89PNG\r\n\x1a\n", "another kind of file"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (pickle.dumps(np.ones(3)), "a pickle that torch.save did not write"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    message = expect(path, says)
    assert "truncated" not in message
    assert ("download" in message) == (not content or "web page" in message)


@pytest.mark.filterwarnings("ignore")
def test_what_torch_itself_exports_is_an_export(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4)), path)
    expect(path, "TorchScript")


def test_a_file_without_a_model(save: Save) -> None:
    for content in ({"epoch": 3}, [1, 2], None, {"model": {"a": torch.ones(1)}}, {"ema": None}):
        expect(save(content), "expected a model under 'ema' or 'model'")


def test_a_file_that_contradicts_itself(model: Any, save: Save) -> None:
    state = {"model.0.conv.weight": torch.ones(9)}
    path = save(state)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    for spoil in (
        lambda name, content: None if name.endswith("data/0") else content,
        lambda name, content: content[:8] if name.endswith("data/0") else content,
        lambda name, content: b"\x80\x02." if name.endswith("data.pkl") else content,
        lambda name, content: content[:-5] if name.endswith("data.pkl") else content,
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                if (left := spoil(name, content)) is not None:
                    archive.writestr(name, left)
        expect(path, "is damaged: expected a pickle as torch.save writes it")


def test_a_big_endian_file_is_refused(save: Save) -> None:
    path = save({"model.0.conv.weight": torch.ones(9)})
    with zipfile.ZipFile(path, "a") as archive:
        names = archive.namelist()
    root = names[0].split("/")[0]
    content = path.read_bytes()
    assert f"{root}/byteorder" in names
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in names:
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    expect(path, "with 'big'-endian numbers")
