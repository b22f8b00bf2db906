"""ONNX graphs: float convolutions become codes and scales, and what no reader needs goes.

A quantized weight is an initializer of codes and a ``DequantizeLinear`` with one scale per output
channel. A quantized input passes ``QuantizeLinear`` and ``DequantizeLinear`` with one scale. ONNX
rounds half to even and divides by the scale, as `qatval.quant.rounding` does, so that codes are the
same to the last one.

Codes of inputs have 8 bits whatever their range, with ``Clip`` before them where that is smaller:
no file holds them, and 4-bit integers made OpenVINO 2026.4 corrupt its memory, and ONNX Runtime
1.32 refuse a ``Clip`` before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qatval.core.deployment import WeightStorage
from qatval.deploy.export.folding import FoldedLayer, InputGrid

OPSET = 21
"""The first with 4-bit integers."""
_IR_VERSION = 10  # what came with it
# What follows the layer's name in those of its values.
_CODES, _WEIGHT, _INPUT, _CLIPPED = ".codes", ".weight", ".input", ".input.clipped"


def quantize(
    model: onnx.ModelProto, layers: Mapping[str, FoldedLayer], storage: WeightStorage
) -> None:
    """Put codes in the place of float weights, and let inputs be rounded, in place.

    Args:
        model: With a convolution for each layer, of the float weight ``<name>.weight``.
        layers: What is quantized, by name.
        storage: ``"int4"``: codes as four-bit integers where they are that small, else eight;
            ``"int8"``: eight in any case; ``"float"``: weights stay as they are.
    """
    nodes = []
    for node in model.graph.node:
        layer = layers.get(_layer_of(node))
        if layer is not None:
            if storage != "float":
                nodes.append(_dequantized_weight(model.graph, _layer_of(node), layer, storage))
            if layer.input is not None:
                nodes.extend(_rounded_input(model.graph, node, layer.input))
        nodes.append(node)
    _replace_nodes(model.graph, nodes)


def split_by_gather(model: onnx.ModelProto, layers: Mapping[str, FoldedLayer]) -> None:
    """Take the parts that quantized 1x1 convolutions read out by ``Gather``, in place.

    OpenVINO makes a matrix product of such a convolution and stops at the ``Split`` before it. The
    other parts are taken alike, as an operator is one or the other.
    """
    graph = model.graph
    pointwise = {
        node.input[0]
        for node in graph.node
        if (layer := layers.get(_layer_of(node))) and layer.codes.shape[2:] == (1, 1)
    }
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    nodes = []
    for node in graph.node:
        if node.op_type != "Split" or pointwise.isdisjoint(node.output):
            nodes.append(node)
            continue
        axis = next(a.i for a in node.attribute if a.name == "axis")
        start = 0
        for part in node.output:
            end = start + shapes[part][axis].dim_value
            index = numpy_helper.from_array(np.arange(start, end), f"{part}.index")
            graph.initializer.append(index)
            nodes.append(helper.make_node("Gather", [node.input[0], index.name], [part], axis=axis))
            start = end
    _replace_nodes(graph, nodes)


def stored_codes(model: onnx.ModelProto) -> dict[str, NDArray[np.int8]]:
    """Return the codes of weights in a graph by the layer's name."""
    return {
        tensor.name.removesuffix(_CODES): numpy_helper.to_array(tensor).astype(np.int8)
        for tensor in model.graph.initializer
        if tensor.name.endswith(_CODES)
    }


def stored_weights(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return the float weights of convolutions in a graph by the layer's name."""
    return {
        _layer_name(tensor.name): numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name.endswith(_WEIGHT)
    }


def roundings(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Return the value before and after the rounding of each rounded input by the layer's name."""
    makers = {value: node for node in model.graph.node for value in node.output}
    found = {}
    for node in model.graph.node:
        name, rounded = _layer_of(node), node.input[0] if node.input else ""
        if name and rounded == f"{name}{_INPUT}":
            before = makers[makers[rounded].input[0]].input[0]
            if before == f"{name}{_CLIPPED}":
                before = makers[before].input[0]
            found[name] = before, rounded
    return found


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph whose convolutions read their inputs as they are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    before = {after: before for before, after in roundings(model).values()}
    for node in copy.graph.node:
        node.input[:] = [before.get(value, value) for value in node.input]
    return copy


def bytes_saved(model: onnx.ModelProto) -> int:
    """Return how many more bytes the weights of a graph would take as float32."""
    return sum(
        4 * math.prod(tensor.dims) - len(tensor.raw_data)
        for tensor in model.graph.initializer
        if tensor.name.endswith(_CODES)
    )


def tidy(model: onnx.ModelProto, name: str) -> None:
    """Leave nothing but what computes, in place.

    The exporter notes beside every node where in which source file it comes from: more bytes than
    some models' weights have, and paths of this machine.
    """
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    graph.initializer.extend(kept)
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    graph.name, graph.doc_string, model.doc_string = name, "", ""
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version = "qatval", ""


def _layer_of(node: onnx.NodeProto) -> str:
    """Return the name of the layer that a convolution computes, nothing for other nodes."""
    return _layer_name(node.input[1]) if node.op_type == "Conv" else ""


def _layer_name(weight: str) -> str:
    return weight.removesuffix(_WEIGHT)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _dequantized_weight(
    graph: onnx.GraphProto, name: str, layer: FoldedLayer, storage: WeightStorage
) -> onnx.NodeProto:
    codes = layer.codes.numpy()
    small = storage == "int4" and codes.min() >= -8 and codes.max() <= 7
    weight = next(t for t in graph.initializer if t.name == f"{name}{_WEIGHT}")
    graph.initializer.remove(weight)
    tensors = {
        f"{name}{_CODES}": codes.astype(ml_dtypes.int4 if small else np.int8),
        f"{name}.scale": layer.scale.numpy(),
    }
    graph.initializer.extend(numpy_helper.from_array(array, n) for n, array in tensors.items())
    return helper.make_node("DequantizeLinear", list(tensors), [weight.name], axis=0)


def _rounded_input(
    graph: onnx.GraphProto, conv: onnx.NodeProto, grid: InputGrid
) -> Iterator[onnx.NodeProto]:
    """Yield what rounds a convolution's input, and let the convolution read that."""
    layer = _layer_of(conv)
    name = f"{layer}{_INPUT}"
    source = conv.input[0]
    kind = np.int8 if grid.low < 0 else np.uint8
    scale = grid.scale.numpy()
    tensors = {f"{name}.scale": scale, f"{name}.zero_point": np.zeros((), kind)}
    if (grid.low, grid.high) != (np.iinfo(kind).min, np.iinfo(kind).max):
        bounds = {f"{name}.low": grid.low * scale, f"{name}.high": grid.high * scale}
        graph.initializer.extend(numpy_helper.from_array(b, n) for n, b in bounds.items())
        yield helper.make_node("Clip", [source, *bounds], [f"{layer}{_CLIPPED}"])
        source = f"{layer}{_CLIPPED}"
    graph.initializer.extend(numpy_helper.from_array(array, n) for n, array in tensors.items())
    yield helper.make_node("QuantizeLinear", [source, *tensors], [f"{name}.codes"])
    yield helper.make_node("DequantizeLinear", [f"{name}.codes", *tensors], [name])
    conv.input[0] = name
