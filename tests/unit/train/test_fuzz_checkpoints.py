"""Mutated checkpoints by the thousand: each loads or is one line, at once and in little memory."""

from __future__ import annotations

import io
import json
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from qatval.core.environment import peak_resident_mb
from qatval.core.errors import QatvalError
from qatval.core.presets import quantization
from qatval.quant.integer import to_integer
from qatval.train.checkpoints import read_torch_file
from qatval.train.models import (
    CheckpointInfo,
    build_model,
    load_checkpoint,
    load_matched,
    read_info,
    save_checkpoint,
)
from qatval.train.tensor_files import read_tensors

ARCHITECTURE = "yolov10n.yaml"
NAMES = ("circle", "square", "triangle")
SECONDS = 5.0  # of CPU; a file takes some milliseconds


def fuzzed(examples: int) -> settings:
    """Return settings by which every machine tries the same files: only code finds new ones."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


Mutation = Callable[[bytes], bytes]


def edited(at: float, kind: str, bytes_: bytes, length: int) -> Mutation:
    """Return what changes a content somewhere: `at` is a share of it."""

    def mutate(content: bytes) -> bytes:
        start = int(at * len(content))
        end = start + length
        if kind == "replace":
            return content[:start] + bytes_ + content[start + len(bytes_) :]
        if kind == "insert":
            return content[:start] + bytes_ + content[start:]
        if kind == "flip" and start < len(content):
            return (
                content[:start] + bytes([content[start] ^ (1 << length % 8)]) + content[start + 1 :]
            )
        if kind == "drop":
            return content[:start] + content[end:]
        if kind == "repeat":
            return content[:end] + content[start:end] * 3 + content[end:]
        return content[:start] if kind == "cut" else content

    return mutate


# Operations of pickles, and numbers that are the largest of their size.
TELLING = st.sampled_from(
    [bytes([n]) for n in b"().}]0123(tRbQhqrjsuaeo\x81\x85\x86\x87\x88\x89\x8a\x8f\x90\x93\x94N"]
    + [b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), b"\x8a\x09" + b"\x7f" * 9]
)
MUTATIONS = st.lists(
    st.builds(
        edited,
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["replace", "insert", "flip", "flip", "drop", "repeat", "cut"]),
        TELLING | st.binary(min_size=1, max_size=9),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=6,
)


def mutated(content: bytes, mutations: list[Mutation]) -> bytes:
    for mutation in mutations:
        content = mutation(content)
    return content


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    before = peak_resident_mb() or 0
    yield
    assert (peak_resident_mb() or 0) - before < 1024


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzzed")
    yield folder
    shutil.rmtree(folder)


def survives(read: Callable[[Path], Any], path: Path, content: bytes) -> bool:
    """Return whether a content loads; if it does not, it must be refused in a line."""
    path.write_bytes(content)
    began, said = time.process_time(), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of complex numbers taken for weights
            read(path)
    except QatvalError as error:
        said = str(error)
    assert time.process_time() - began < SECONDS
    assert said.isprintable()
    assert len(said) < 1000
    return not said


class Small(nn.Module):
    """Everything that a checkpoint's pickle has: layers, buffers, names, and what lies beside."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.SiLU()))
        self.names = dict(enumerate(NAMES))


Small.__module__, Small.__qualname__ = "ultralytics.nn.tasks", "DetectionModel"


class Files(dict[str, bytes]):
    """Contents that are not printed when a test fails."""

    def __repr__(self) -> str:
        return f"files {sorted(self)}"


@pytest.fixture(scope="module")
def torch_files() -> Files:
    """Small checkpoints in both containers, as a module and as its state."""
    model = Small()
    made = Files()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("ultralytics.nn.tasks.DetectionModel", Small)
        for form, content in {
            "module": {"ema": None, "model": model, "fitness": np.float32(0.5), "date": "today"},
            "state": {"state_dict": model.half().state_dict(), "names": list(NAMES)},
        }.items():
            for container, zipped in {"zip": True, "old": False}.items():
                written = io.BytesIO()
                torch.save(content, written, _use_new_zipfile_serialization=zipped)
                made[f"{form}, {container}"] = written.getvalue()
    return made


def with_pickle(whole: bytes, mutations: list[Mutation], record: str) -> bytes:
    """Return an archive with a record mutated, whole as an archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutated(content, mutations) if name.endswith(record) else content)
    return made.getvalue()


def test_whole_files_load(torch_files: Files, place: Path) -> None:
    for content in torch_files.values():
        assert survives(read_torch_file, place / "x.pt", content)


@pytest.mark.parametrize("form", ["module", "state"])
@fuzzed(800)
@given(mutations=MUTATIONS)
def test_pickles(form: str, mutations: list[Mutation], torch_files: Files, place: Path) -> None:
    whole = torch_files[f"{form}, zip"]
    survives(read_torch_file, place / "x.pt", with_pickle(whole, mutations, "data.pkl"))


@pytest.mark.parametrize("form", ["module", "state"])
@pytest.mark.parametrize("container", ["zip", "old"])
@fuzzed(300)
@given(mutations=MUTATIONS)
def test_containers(
    form: str,
    container: str,
    mutations: list[Mutation],
    torch_files: Files,
    place: Path,
) -> None:
    content = mutated(torch_files[f"{form}, {container}"], mutations)
    survives(read_torch_file, place / "x.pt", content)


@fuzzed(100)
@given(mutations=MUTATIONS)
def test_storages_and_the_records_beside_them(
    mutations: list[Mutation], torch_files: Files, place: Path
) -> None:
    for record in ("data/0", "version", "byteorder"):
        content = with_pickle(torch_files["module, zip"], mutations, record)
        survives(read_torch_file, place / "x.pt", content)


@pytest.fixture(scope="module")
def own() -> Files:
    """A small file as qatval writes it."""
    info = {
        "kind": "latent",
        "architecture": ARCHITECTURE,
        "class_names": NAMES,
        "quantization": {**vars(quantization("w4a16")), "start": {"scale": "max"}},
    }
    tensors = {"model.0.conv.weight": torch.ones(2, 2), "model.0.bn.bias": torch.ones(2).half()}
    return Files(own=safetensors.torch.save(tensors, {"qatval": json.dumps(info)}))


def read_both(path: Path) -> None:
    read_info(path)
    read_tensors(path)


@fuzzed(500)
@given(mutations=MUTATIONS)
def test_safetensors(mutations: list[Mutation], own: Files, place: Path) -> None:
    survives(read_both, place / "x.safetensors", mutated(own["own"], mutations))


@fuzzed(500)
@given(mutations=MUTATIONS)
def test_headers_of_safetensors(mutations: list[Mutation], own: Files, place: Path) -> None:
    """Mutated behind a length that is right."""
    whole = own["own"]
    length = int.from_bytes(whole[:8], "little")
    header = mutated(whole[8 : 8 + length], mutations)
    content = len(header).to_bytes(8, "little") + header + whole[8 + length :]
    survives(read_both, place / "x.safetensors", content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=9,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["float", "latent", "integer", "other"]) | JSON,
        "architecture": st.sampled_from([ARCHITECTURE, "./yolov10n.yaml", "{}"]) | JSON,
        "class_names": st.lists(st.text(max_size=9), max_size=4) | JSON,
        "quantization": st.none() | JSON,
    },
)


@fuzzed(200)
@given(info=FIELDS | JSON)
def test_metadata(info: Any, place: Path) -> None:
    content = safetensors.torch.save({"a": torch.ones(1)}, {"qatval": json.dumps(info)})
    survives(read_info, place / "x.safetensors", content)


def matched(path: Path) -> None:
    load_matched(path, ARCHITECTURE, NAMES)


@pytest.fixture(scope="module")
def whole_models(quantized_yolo10n: Callable[[str], Any], place: Path) -> Files:
    """Checkpoints of whole models."""
    own, brought = place / "own.safetensors", place / "brought.pt"
    info = CheckpointInfo("integer", ARCHITECTURE, NAMES, quantization("w4a16"))
    save_checkpoint(own, to_integer(quantized_yolo10n("w4a16")), info)
    torch.save({"model": build_model(ARCHITECTURE, NAMES).half()}, brought)
    return Files({file.name: file.read_bytes() for file in (own, brought)})


@fuzzed(15)
@given(mutations=MUTATIONS)
def test_whole_models(mutations: list[Mutation], whole_models: Files, place: Path) -> None:
    """Through all of the loading: a few, as each builds a model."""
    for name, content in whole_models.items():
        load = matched if name.endswith(".pt") else load_checkpoint
        survives(load, place / name, mutated(content, mutations))
