"""Codes in a graph: what ONNX's own reference and ONNX Runtime compute is what the layer does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from qatval.core.deployment import WeightStorage
from qatval.deploy.export.folding import FoldedLayer, folded
from qatval.deploy.export.graph import (
    quantize,
    roundings,
    split_by_gather,
    stored_codes,
    tidy,
    unrounded,
)
from qatval.quant.integer import IntegerConv2d

CHANNELS = 4
STEP = 0.375
"""Of the input, a multiple of a power of two: half of it is a tie, exactly."""


def layer(low: int, high: int, grid: tuple[int, int] | None = None) -> IntegerConv2d:
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, 5, 1)
    codes = torch.randint(low, high + 1, conv.weight.shape, dtype=torch.int8)
    codes[0, 0], codes[0, 1] = low, high
    rounding = (torch.tensor(STEP), torch.tensor(grid, dtype=torch.int16)) if grid else ()
    return IntegerConv2d(conv, codes, torch.rand(5, 1, 1, 1), *rounding)


def traced(name: str, conv: IntegerConv2d, shape: Sequence[int]) -> onnx.ModelProto:
    """The float graph of one convolution, with what exporters leave in it."""
    tensors = {f"{name}.weight": conv.weight, f"{name}.bias": conv.bias, "unused": conv.weight}
    node = helper.make_node(
        "Conv", ["images", f"{name}.weight", f"{name}.bias"], ["y"], doc_string="/home/someone"
    )
    node.metadata_props.add(key="stack_trace", value="/home/someone/file.py")
    out = [shape[0], 5, *shape[2:]]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(t.numpy(), n) for n, t in tensors.items() if t is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def images() -> NDArray[np.float32]:
    """Numbers far beyond every grid, all ties of it, and their neighbours on either side."""
    ties = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * np.float32(STEP)
    numbers = [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-9e9))]
    return np.concatenate(numbers).reshape(1, CHANNELS, 18, 25)


def in_runtime(model: onnx.ModelProto, x: NDArray[np.float32], disable: str) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", disable)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(None, {"images": x})[0])


def quantized(
    conv: IntegerConv2d, storage: WeightStorage = "int4"
) -> tuple[onnx.ModelProto, dict[str, FoldedLayer]]:
    _, layers = folded(nn.ModuleDict({"head": conv}))
    model = traced("head", conv, images().shape)
    quantize(model, layers, storage)
    return model, dict(layers)


GRIDS = [
    (None),
    (-8, 7),
    (-7, 7),
    (-4, 3),
    (0, 15),
    (-128, 127),
    (-127, 127),
    (0, 255),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_graph_computes_what_the_layer_does(grid: tuple[int, int] | None) -> None:
    conv = layer(-7, 7, grid)
    model, _ = quantized(conv)
    onnx.checker.check_model(model, full_check=True)
    x = images()
    wanted = conv(torch.from_numpy(x)).numpy()
    bound = 1e-6 * abs(wanted).max()
    assert abs(ReferenceEvaluator(model).run(None, {"images": x})[0] - wanted).max() <= bound
    for disable in "01":
        assert abs(in_runtime(model, x, disable) - wanted).max() <= bound


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid], ids=str)
def test_rounded_inputs_are_the_layers_to_the_bit(grid: tuple[int, int]) -> None:
    conv = layer(-7, 7, grid)
    model, _ = quantized(conv)
    ((name, (before, after)),) = roundings(model).items()
    assert (name, before) == ("head", "images")
    model.graph.output[0].name = after
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = CHANNELS
    x = images()
    rounded = conv.quantized(torch.from_numpy(x)).numpy()
    assert len(np.unique(rounded)) == grid[1] - grid[0] + 1
    assert np.array_equal(in_runtime(model, x, "1"), rounded)
    assert np.array_equal(ReferenceEvaluator(model).run(None, {"images": x})[0], rounded)


@pytest.mark.parametrize(
    ("low", "high", "storage", "kind"),
    [
        (-1, 1, "int4", TensorProto.INT4),
        (-8, 7, "int4", TensorProto.INT4),
        (-8, 8, "int4", TensorProto.INT8),
        (-9, 7, "int4", TensorProto.INT8),
        (-127, 127, "int4", TensorProto.INT8),
        (-7, 7, "int8", TensorProto.INT8),
    ],
)
def test_codes_lie_in_the_type_asked_for(
    low: int, high: int, storage: WeightStorage, kind: int
) -> None:
    conv = layer(low, high)
    model, _ = quantized(conv, storage)
    tensor = next(t for t in model.graph.initializer if t.name == "head.codes")
    assert tensor.data_type == kind
    assert len(tensor.raw_data) == conv.codes.numel() // (2 if kind == TensorProto.INT4 else 1)
    assert np.array_equal(stored_codes(model)["head"], conv.codes.numpy())
    assert "head.weight" not in {t.name for t in model.graph.initializer}


def test_float_storage_keeps_float_weights_and_rounds_inputs() -> None:
    conv = layer(-7, 7, (-8, 7))
    model, _ = quantized(conv, "float")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Clip", "QuantizeLinear", "DequantizeLinear", "Conv"]
    assert stored_codes(model) == {}
    x = images()
    wanted = conv(torch.from_numpy(x)).numpy()
    assert abs(in_runtime(model, x, "1") - wanted).max() <= 1e-6 * abs(wanted).max()


def test_without_its_roundings_a_graph_reads_inputs_as_they_are() -> None:
    conv = layer(-7, 7, (-4, 3))
    model, _ = quantized(conv)
    x = images()
    assert abs(in_runtime(model, x, "1")).max() < abs(in_runtime(unrounded(model), x, "1")).max()
    conv.input_scale = None
    wanted = conv(torch.from_numpy(x)).numpy()
    assert abs(in_runtime(unrounded(model), x, "1") - wanted).max() <= 1e-6 * abs(wanted).max()
    assert roundings(unrounded(model)) == {}


def test_nothing_is_left_but_what_computes() -> None:
    model, _ = quantized(layer(-7, 7))
    tidy(model, "one layer")
    content = model.SerializeToString()
    assert b"someone" not in content
    assert {t.name for t in model.graph.initializer} == {"head.codes", "head.scale", "head.bias"}
    onnx.checker.check_model(model, full_check=True)


def split(parts: Sequence[int]) -> tuple[onnx.ModelProto, dict[str, FoldedLayer]]:
    """A Split whose first part a 1x1 convolution reads."""
    conv = layer(-7, 7)
    _, layers = folded(nn.ModuleDict({"head": conv}))
    model = traced("head", conv, (1, CHANNELS, 2, 2))
    names = [f"part{i}" for i in range(len(parts))]
    sizes = numpy_helper.from_array(np.array(parts, np.int64), "sizes")
    node = helper.make_node("Split", ["images", "sizes"], names, axis=1)
    model.graph.initializer.append(sizes)
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = names[0]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = sum(parts)
    for name, size in zip(names, parts, strict=True):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, size, 2, 2))
        model.graph.value_info.append(value)
        model.graph.output.append(value)
    return model, dict(layers)


def test_a_split_before_a_quantized_1x1_convolution_becomes_gather() -> None:
    model, layers = split([CHANNELS, 3, 2])
    x = np.random.default_rng(0).random((1, 9, 2, 2), np.float32)
    before = ReferenceEvaluator(model).run(None, {"images": x})
    split_by_gather(model, layers)
    assert [node.op_type for node in model.graph.node] == ["Gather", "Gather", "Gather", "Conv"]
    after = ReferenceEvaluator(model).run(None, {"images": x})
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_another_split_stays() -> None:
    model, _ = split([CHANNELS, 3])
    split_by_gather(model, {})
    assert [node.op_type for node in model.graph.node] == ["Split", "Conv"]
