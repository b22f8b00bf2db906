"""Files made to run code, to hang or to take all memory: each is one line, at once."""

from __future__ import annotations

import functools
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from qatval.core.environment import peak_resident_mb
from qatval.core.errors import QatvalError
from qatval.train.checkpoints import read_torch_file
from qatval.train.models import build_model, load_checkpoint, load_matched, read_info

ARCHITECTURE = "yolov10n.yaml"
NAMES = ("circle", "square", "triangle")


def archive(path: Path, pickled: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/version", "3\n")
        for key, content in storages.items():
            file.writestr(f"x/data/{key[1:]}", content)
    return path


def refused(use: Callable[[], Any], message: str | None = None) -> str:
    """Return the one line that a use is refused with, at once and in little memory."""
    began, before = time.process_time(), peak_resident_mb()
    with pytest.raises(QatvalError, match=message) as caught:
        use()
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 600
    assert time.process_time() - began < 10
    assert (peak_resident_mb() or 0) - (before or 0) < 1024
    return line


# -- pickles ---------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(full: str) -> bytes:
    module, _, kind = full.rpartition(".")
    return f"c{module}\n{kind}\n".encode()


def mapping(items: dict[str, bytes], remember: bytes = b"") -> bytes:
    return b"}" + remember + b"".join(text(key) + value + b"s" for key, value in items.items())


def tensor(size: bytes, stride: bytes = b"(K\1t", offset: bytes = b"K\0", key: str = "0") -> bytes:
    """A tensor in a storage; size and stride are tuples."""
    storage = b"(" + text("storage") + STORAGE + text(key) + text("cpu") + b"K\x10tQ"
    arguments = storage + offset + size + stride + b"\x89}"
    return TENSOR + b"(" + arguments + b"tR"


def module(children: bytes, remember: bytes = b"") -> bytes:
    fields = {"_modules": children, "_parameters": b"}", "_buffers": b"}"}
    made = name("torch.nn.modules.container.Sequential") + b")\x81"
    return made + remember + mapping(fields) + b"b"


def doubled(times: int = 60) -> bytes:
    """A tuple of a tuple twice, and so on."""
    return b")" + b"2\x86" * times


def mappings_that_double(times: int = 60) -> bytes:
    made = b"}"
    for n in range(times):
        again = b"h%c" % n
        made += b"q%c" % n + mapping({"model": again, "ema": again})
    return made


STORAGE = name("torch.FloatStorage")
TENSOR = name("torch._utils._rebuild_tensor_v2")
PARAMETER = name("torch._utils._rebuild_parameter")
WEIGHT = "0.weight"
TWO = b"(K\2t"
MANY = b"(" + b"K\1" * 1000 + b"t"
TERABYTE = struct.pack("<Q", 2**40)
GIBI = b"J\0\0\0\x40"
MINUS = b"J" + b"\xff" * 4
LONG = b"\x8a\x09" + bytes(8) + b"\x01"  # 2 ** 64
SIZE = name("torch.Size") + b"q\1"

PICKLES = {
    "a memo for 30 GB": b"N" + b"r" + struct.pack("<I", 2**31 - 1),
    "a text of a TB": b"\x8d" + TERABYTE + b"x",
    "bytes of a TB": b"\x8e" + TERABYTE + b"x",
    "a bytearray of a TB": b"\x96" + TERABYTE + b"x",
    "a frame of a TB": b"\x95" + TERABYTE + b"N",
    "a key that doubles": b"}" + doubled() + b"Ns",
    "a key in a set that doubles": b"\x8f(" + doubled() + b"\x90",
    "a key that is deep": b"})" + b"\x85" * 500_000 + b"Ns",
    "lists that are deep": b"]" * 400_000 + b"a" * 399_999,
    "records that are deep": PARAMETER + b"q\0" + b"h\0" * 200_000 + b"N" + b"\x85R" * 200_001,
    "more operations than any": b"N0" * 1_000_000 + b"N",
    "copies": b"](" + b"N" * 100_000 + b"eq\0" + (SIZE + b"h\0\x85R") * 3000,
    "a storage that doubles": b"(" + text("storage") + STORAGE + doubled() + text("cpu") + b"K\1tQ",
    "a name of another kind": b"K\1K\2\x93",
    "a tensor's name of a MB": mapping({"0." + "a" * 1_000_000: b"K\1"}),
    "a tensor's name that is none": mapping({WEIGHT: b"K\1"}) + b"K\1K\1s",
    "a module in itself": module(mapping({"0": b"h\0"}), b"q\0"),
    "a mapping in itself": mapping({"model": b"h\0", "ema": b"h\0"}, b"q\0"),
    "mappings that double": mappings_that_double(),
    "a state for a class": name("ultralytics.nn.tasks.DetectionModel") + b"}b",
    "a state for a list": b"]}b",
    "a call of a text": text("os.system") + b")R",
    "a reference that is none": text("a") + b"Q",
    "an extension": b"\x82\x01",
    "a mark that is not there": b"t",
    "an empty stack": b"",
    "a tensor of lists": mapping({WEIGHT: tensor(b"(]t")}),
    "a tensor of a billion": mapping({WEIGHT: tensor(b"(" + GIBI + b"t", b"(K\0t")}),
    "a tensor of 2 ** 64": mapping({WEIGHT: tensor(b"(" + LONG + b"t")}),
    "a negative side": mapping({WEIGHT: tensor(b"(" + MINUS + b"t")}),
    "a negative stride": mapping({WEIGHT: tensor(TWO, b"(" + MINUS + b"t")}),
    "a stride out of the file": mapping({WEIGHT: tensor(TWO, b"(" + GIBI + b"t")}),
    "an offset out of the file": mapping({WEIGHT: tensor(TWO, offset=GIBI)}),
    "a thousand sides": mapping({WEIGHT: tensor(MANY, MANY)}),
    "sides without strides": mapping({WEIGHT: tensor(TWO, b")")}),
    "another storage": mapping({WEIGHT: tensor(TWO, key="9")}),
    "a storage out of the archive": mapping({WEIGHT: tensor(TWO, key="../../etc/passwd")}),
    "a storage that is a text": mapping({WEIGHT: TENSOR + b"(" + text("0") + b"K\0))tR"}),
    "parameters in parameters": mapping(
        {WEIGHT: PARAMETER + b"q\0" + b"h\0" * 5000 + tensor(TWO) + b"\x85R" * 5001}
    ),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_made_to_hurt(kind: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "brought.pt", b"\x80\x02" + PICKLES[kind] + b".", _0=bytes(64))
    refused(lambda: read_torch_file(path), r"brought\.pt")


@pytest.mark.parametrize("kind", ["a" * 1_000_000, "\x1b[2J", "a\r"])
def test_a_name_made_to_be_printed(kind: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", b"\x80\x02" + name(f"torch.nn.{kind}") + b".")
    refused(lambda: read_torch_file(path), "is refused: it refers to '")


def test_tensors_that_overlap(tmp_path: Path) -> None:
    def sharing(count: int) -> Path:
        same = tensor(b"(M\x00\x04t")
        made = b"\x80\x02" + mapping({f"0.{n}": same for n in range(count)}) + b"."
        return archive(tmp_path / "x.pt", made, _0=bytes(4096))

    refused(lambda: read_torch_file(sharing(1000)), "contradicts itself")
    assert len(read_torch_file(sharing(2)).tensors) == 2  # tied weights


def test_names_are_not_looked_for_for_ever(tmp_path: Path) -> None:
    inside_itself = module(mapping({"module": b"h\0"}), b"q\0")
    made = mapping({"model": mapping({WEIGHT: tensor(TWO)}), "module": inside_itself})
    path = archive(tmp_path / "x.pt", b"\x80\x02" + made + b".", _0=bytes(64))
    assert read_torch_file(path).class_names is None


def test_modules_that_double(tmp_path: Path) -> None:
    made = module(b"}") + b"q\0"
    for n in range(40):
        inside = b"h%c" % n
        made += module(mapping({"0": inside, "1": inside})) + b"q%c" % (n + 1)
    path = archive(tmp_path / "x.pt", b"\x80\x02" + made + b".")
    refused(lambda: read_torch_file(path), "contradicts itself")


def test_a_module_that_torch_saved_and_that_contains_itself(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    model.add_module("again", model)
    torch.save({"model": model}, tmp_path / "x.pt")
    refused(lambda: read_torch_file(tmp_path / "x.pt"), "contradicts itself")


# -- archives --------------------------------------------------------------------------------------


def test_a_compressed_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", b"\x80\x02" + b"N0" * 10_000_000 + b"N.")
        file.writestr("x/version", "3\n")
    refused(lambda: read_torch_file(tmp_path / "x.pt"), "are compressed or overlap")


def test_records_that_overlap(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", b"\x80\x02N.", _0=bytes(100_000))
    content = path.read_bytes()
    start = content.index(b"PK\1\2")
    entries, end = content[start : content.index(b"PK\5\6")], content[content.index(b"PK\5\6") :]
    many = entries * 300
    end = end[:8] + struct.pack("<HHL", 900, 900, len(many)) + end[16:]
    path.write_bytes(content[:start] + many + end)
    refused(lambda: read_torch_file(path), "are compressed or overlap")


def test_an_archive_of_a_million_records(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("x/data.pkl", b"\x80\x02N.")
        file.writestr("x/filler", b"PK\1\2" * 100_000)
    refused(lambda: read_torch_file(tmp_path / "x.pt"), "more than 65535 records")


def test_a_file_that_is_no_file_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    (tmp_path / "y").mkdir()
    with (tmp_path / "z").open("wb") as file:
        file.truncate((1 << 30) + 1)
    for read in (read_torch_file, read_info, load_checkpoint):
        for brought, says in {"x": "expected a file", "y": "expected a file", "z": "MiB"}.items():
            refused(functools.partial(read, tmp_path / brought), says)


def test_an_old_container_that_lies_about_its_storages(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"0.a": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    at = whole.rindex(struct.pack("<q", 4))
    for count in (-1, -(2**62), 2**62, 2**63 - 1, 5):
        path.write_bytes(whole[:at] + struct.pack("<q", count) + whole[at + 8 :])
        refused(lambda: read_torch_file(path), "truncated")


# -- safetensors -----------------------------------------------------------------------------------


def own(path: Path, info: Any) -> Path:
    written = info if isinstance(info, str) else json.dumps(info)
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"qatval": written})
    return path


W4 = {
    "weight_bit_width": 4,
    "narrow_range": True,
    "scale": "per-tensor",
    "scale_without_batchnorm": "per-channel",
    "exempt": {},
}
FLOAT = {"kind": "float", "architecture": ARCHITECTURE, "class_names": NAMES}
LATENT = {**FLOAT, "kind": "latent"}


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({**FLOAT, "architecture": '{"activation": "exit()"}'}, "unknown architecture '{"),
        ({**FLOAT, "architecture": {"activation": "exit()"}}, "holds no qatval metadata"),
        ({**FLOAT, "architecture": "./yolov10n.yaml"}, r"unknown architecture '\./yolov10n"),
        ({**FLOAT, "architecture": "/tmp/yolov10n.yaml"}, "unknown architecture '/tmp/"),
        ({**FLOAT, "architecture": "yolov10x.yaml"}, "expected one of yolov10n.yaml, "),
        ({**FLOAT, "architecture": "\x1b[2J" * 9999}, r"unknown architecture '\\x1b\[2J"),
        ({**FLOAT, "class_names": []}, "expected 1 to 20000 classes, got 0"),
        ({**FLOAT, "class_names": ["a"] * 20_001}, "expected 1 to 20000 classes, got 20001"),
        ({**FLOAT, "class_names": ["a" * 1001]}, "up to 1000 characters, got 'aaa.* of 1001"),
        ({**FLOAT, "class_names": [1]}, "holds no qatval metadata"),
        ({**FLOAT, "kind": "other"}, "holds no qatval metadata"),
        (LATENT, "latent weights need the quantization"),
        ({**LATENT, "quantization": {**W4, "weight_bit_width": 99}}, "bits must lie in 2..8"),
        ({**LATENT, "quantization": {**W4, "scale": "odd"}}, "holds no qatval metadata"),
        ({**LATENT, "quantization": {**W4, "boundary": ["*"] * 65}}, "up to 64 patterns"),
        ({**LATENT, "quantization": {**W4, "exempt": {"*a" * 999: ""}}}, "up to 64 patterns"),
        ("[" * 100_000, "holds no qatval metadata"),
        ('{"other": ' + "[" * 100_000, "holds no qatval metadata"),
        ("9" * 100_000, "holds no qatval metadata"),
        ("", "holds no qatval metadata"),
    ],
)
def test_metadata_of_a_stranger(info: Any, says: str, tmp_path: Path) -> None:
    path = own(tmp_path / "x.safetensors", info)
    refused(lambda: load_checkpoint(path), says)
    refused(lambda: load_matched(path, ARCHITECTURE, NAMES), says)


@pytest.mark.parametrize(
    "header",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"__metadata__":{"qatval":{}}}', b"{}" + b" " * 99, b""],
)
@pytest.mark.parametrize("length", [None, 0, 2**24, 2**63, 2**64 - 1])
def test_a_header_of_a_stranger(header: bytes, length: int | None, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    refused(lambda: load_checkpoint(path))


def test_a_header_of_more_tensors_than_any(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"a{n}": empty for n in range(160_000)}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(lambda: load_checkpoint(path), "expected a safetensors header of up to 8 MiB")


def test_scales_of_a_shape_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    info = {"qatval": json.dumps({**FLOAT, "kind": "integer"})}
    for shape in ((7,), (16, 1, 1), (1, 16, 1, 1), (0,)):
        safetensors.torch.save_file({"model.0.conv.scale": torch.ones(shape)}, path, info)
        refused(lambda: load_checkpoint(path), "expected one scale for 'model.0.conv' or one per")


# -- names -----------------------------------------------------------------------------------------


def test_a_model_file_in_the_current_folder_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (
        "activation: __import__('pathlib').Path('owned').touch()\nbackbone: []\nhead: []\nnc: 1"
    )
    for file in ("yolov10n.yaml", "yolo11n.yaml", "yolo11.yaml"):
        (tmp_path / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    for architecture in ("yolov10n.yaml", "yolo11n.yaml"):
        assert len(build_model(architecture, NAMES).names) == 3
    assert not (tmp_path / "owned").exists()


def test_an_array_beside_an_image_is_neither_read_nor_removed(tmp_path: Path) -> None:
    import cv2
    import numpy as np
    from ultralytics.utils import DEFAULT_CFG

    from qatval.data.subset import Split
    from qatval.train.dataset import SubsetDataset

    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((64, 64, 3), 7, np.uint8))
    np.save(tmp_path / "a.npy", np.full((64, 64, 3), 200, np.uint8))
    (tmp_path / "b.npy").write_bytes(b"no array")
    split = Split(
        name="train",
        image_dir=tmp_path,
        file_names=("a.png", "b.png"),
        image_ids=np.arange(2),
        sizes=np.full((2, 2), 64, np.int32),
        offsets=np.zeros(3, np.int64),
        classes=np.zeros(0, np.int64),
        boxes=np.zeros((0, 4), np.float32),
    )
    dataset = SubsetDataset(split, ("a",), DEFAULT_CFG, batch=1)
    assert [int(dataset.load_image(i)[0].max()) for i in range(2)] == [7, 7]
    assert (tmp_path / "b.npy").read_bytes() == b"no array"


def test_a_checkpoint_that_is_written_is_within_the_bounds_of_reading() -> None:
    with pytest.raises(QatvalError, match="expected 1 to 20000 classes, got 20001"):
        build_model(ARCHITECTURE, ["a"] * 20_001)
