"""Both runtimes load a file, answer alike, tell what they compute, and complain in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.deploy.files import SIDE, card, network, write_file

from qatval.core.deployment import RuntimeName
from qatval.core.errors import QatvalError
from qatval.deploy.card import Input
from qatval.deploy.runtimes import open_runtime

RUNTIMES = get_args(RuntimeName)
each_runtime = pytest.mark.parametrize("name", RUNTIMES)


REFUSED = """
import json, sys
import numpy as np
from pathlib import Path
from qatval.core.errors import QatvalError
from qatval.deploy.runtimes import open_runtime
name, path, shape = sys.argv[1:]
try:
    runtime = open_runtime(name, Path(path), threads=1)
    if json.loads(shape):
        runtime.run(np.zeros(json.loads(shape), np.float32))
except QatvalError as error:
    print(error)
"""


def refused(name: RuntimeName, path: Path, shape: tuple[int, ...] | None = None) -> str:
    """Return what is said of a file, or of images of a shape that it is given.

    In a process of its own: of OpenVINO's models that an error has kept, a process dies that other
    tests fork.
    """
    given = [name, str(path), json.dumps(shape)]
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *given], capture_output=True, text=True, check=True
    )
    said = done.stdout.rstrip("\n")
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


def test_they_answer_alike(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.onnx")
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    answers = [open_runtime(name, path, threads=1).run(image) for name in RUNTIMES]
    assert answers[0].shape == (1, 16, 6)
    assert answers[0].dtype == answers[1].dtype == np.float32
    assert np.abs(answers[0]).max() > 0.1
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-6)


@each_runtime
def test_what_it_says_of_itself(tmp_path: Path, name: RuntimeName) -> None:
    runtime = open_runtime(name, write_file(tmp_path / "a.onnx"), threads=2)
    assert (runtime.name, runtime.threads, runtime.card) == (name, 2, card())
    assert re.fullmatch(r"\d+\.\d+\.\d+", runtime.version)


def test_int4_weights_are_computed_in_float(tmp_path: Path) -> None:
    runtime = open_runtime("onnxruntime", write_file(tmp_path / "a.onnx"), threads=1)
    assert runtime.executed() == {"float32": 1}


def test_openvino_tells_what_it_computes(tmp_path: Path) -> None:
    runtime = open_runtime("openvino", write_file(tmp_path / "a.onnx"), threads=1)
    ((precision, count),) = runtime.executed().items()
    assert precision.startswith("float32")
    assert count == 1


def test_integer_kernels_are_told_from_float(tmp_path: Path) -> None:
    model = network()
    node = model.graph.node
    quantized = [
        helper.make_node("QuantizeLinear", ["images", "step", "zero"], ["levels"]),
        helper.make_node("ConvInteger", ["levels", "bytes"], ["sums"], strides=[8, 8]),
        helper.make_node("Cast", ["sums"], ["cells"], to=TensorProto.FLOAT),
    ]
    kept = [n for n in node if n.op_type in ("Reshape", "Transpose")]
    del node[:]
    node.extend(quantized + kept)
    model.graph.initializer.extend(
        [
            helper.make_tensor("step", TensorProto.FLOAT, [], [1 / 255]),
            helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
            helper.make_tensor("bytes", TensorProto.INT8, [6, 3, 8, 8], [1] * 6 * 3 * 64),
        ]
    )
    runtime = open_runtime("onnxruntime", write_file(tmp_path / "a.onnx", model=model), threads=1)
    assert runtime.executed() == {"uint8, weights int8": 1}


def test_rounded_inputs_are_computed_in_float_as_in_training(tmp_path: Path) -> None:
    model = network()
    nodes = list(model.graph.node)
    levels = {"images": "inputs", "cells": "outputs"}
    for source, rounded in levels.items():
        nodes += [
            helper.make_node("QuantizeLinear", [source, "step", "zero"], [f"{rounded} codes"]),
            helper.make_node("DequantizeLinear", [f"{rounded} codes", "step", "zero"], [rounded]),
        ]
    convolution, reshape = nodes[1], nodes[2]
    convolution.input[0], reshape.input[0] = "inputs", "outputs"
    del convolution.input[2]  # a bias of floats would keep it from the integer kernels
    dequantize, transpose = nodes[0], nodes[3]
    del model.graph.node[:]
    model.graph.node.extend([dequantize, *nodes[4:6], convolution, *nodes[6:8], reshape, transpose])
    model.graph.initializer.extend(
        [
            helper.make_tensor("step", TensorProto.FLOAT, [], [1 / 255]),
            helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
        ]
    )
    codes = next(i for i in model.graph.initializer if i.name == "codes")
    values = numpy_helper.to_array(codes).astype(np.int8)
    codes.CopyFrom(numpy_helper.from_array(values, "codes"))
    runtime = open_runtime("onnxruntime", write_file(tmp_path / "a.onnx", model=model), threads=1)
    assert runtime.executed() == {"float32": 1}


def test_openvino_rounds_no_inputs_of_products_with_int4_weights(tmp_path: Path) -> None:
    channels, side = 128, 8
    random = np.random.default_rng(0)
    stem = random.normal(0, 1, (channels, 3, 4, 4)).astype(np.float32)
    codes = random.integers(-8, 8, channels * 6)
    nodes = [
        helper.make_node("Conv", ["images", "stem"], ["features"], strides=[4, 4]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["weight"], axis=0),
        helper.make_node("Conv", ["features", "weight"], ["cells"]),
        *network().graph.node[2:],
    ]
    answer = helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, side * side, 6])
    graph = helper.make_graph(
        nodes,
        "network",
        list(network().graph.input),
        [answer],
        [
            numpy_helper.from_array(stem, "stem"),
            helper.make_tensor("codes", TensorProto.INT4, [6, channels, 1, 1], codes.tolist()),
            numpy_helper.from_array(np.full(6, 0.1, np.float32), "scales"),
            numpy_helper.from_array(np.array([0, 6, side * side], np.int64), "shape"),
        ],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    path = write_file(tmp_path / "a.onnx", model=model)
    image = random.random((1, 3, SIDE, SIDE), np.float32)
    exact, other = (open_runtime(name, path, threads=1).run(image) for name in RUNTIMES)
    assert np.abs(exact - other).max() < 1e-5 * np.abs(exact).max()


@each_runtime
def test_images_of_another_size_or_number(tmp_path: Path, name: RuntimeName) -> None:
    path = write_file(tmp_path / "a.onnx")
    said = refused(name, path, (1, 3, 64, 64))
    assert "takes images of the shape 1x3x32x32, not 1x3x64x64" in said
    assert "1x3x32x32, not 2x3x32x32" in refused(name, path, (2, 3, 32, 32))


@each_runtime
def test_a_card_of_another_graph(tmp_path: Path, name: RuntimeName) -> None:
    path = write_file(tmp_path / "a.onnx", card(input=Input(imgsz=64, batch=1)))
    assert "takes images of the shape 1x3x32x32, its card says 1x3x64x64" in refused(name, path)
    path = write_file(tmp_path / "b.onnx", card(input=Input(imgsz=SIDE, batch=None)))
    assert "its card says ?x3x32x32" in refused(name, path)


@each_runtime
def test_a_graph_that_cannot_be_loaded(tmp_path: Path, name: RuntimeName) -> None:
    model = network()
    model.graph.node[1].op_type = "NoSuchOperator"
    assert f"{name} " in refused(name, write_file(tmp_path / "a.onnx", model=model))


@pytest.mark.parametrize("newer", ["opset", "form"])
def test_a_file_of_a_newer_onnx(tmp_path: Path, newer: str) -> None:
    model = network()
    if newer == "opset":
        model.opset_import[0].version = 999
    else:
        model.ir_version = 999
    said = refused("onnxruntime", write_file(tmp_path / "a.onnx", model=model))
    assert "update onnxruntime" in said


@each_runtime
@pytest.mark.parametrize("place", ["../weights.bin", "link.bin", "{folder}/weights.bin"])
def test_weights_outside_of_the_files_folder(tmp_path: Path, name: RuntimeName, place: str) -> None:
    outside = tmp_path / "weights.bin"
    outside.write_bytes(bytes(24))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link.bin").symlink_to(outside)
    model = network()
    scales = next(i for i in model.graph.initializer if i.name == "scales")
    scales.ClearField("raw_data")
    scales.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", place.format(folder=tmp_path)),
        ("offset", "0"),
        ("length", "24"),
    ):
        scales.external_data.add(key=key, value=value)
    refused(name, write_file(tmp_path / "model" / "a.onnx", model=model))


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "export"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: RuntimeName, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(QatvalError, match=rf"pip install 'qatval\[{extra}\]'"):
        open_runtime(name, write_file(tmp_path / "a.onnx"), threads=1)


def test_a_runtime_takes_nothing_with_it(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.onnx")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from qatval.deploy.runtimes import open_runtime\n"
        f"open_runtime('onnxruntime', Path({str(path)!r}), threads=1)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "ultralytics", "brevitas", "onnx", "openvino", "cv2", "PIL", "pycocotools"}
    assert not heavy & set(loaded)
