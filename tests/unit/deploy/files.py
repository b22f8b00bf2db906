"""Exported files for tests: a network of one convolution, with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qatval.deploy.card import KEY, Card, Input, Origin, Output

SIDE = 32
CELLS = 4  # along each side of the square, each of which answers with one box


def card(**changes: Any) -> Card:
    """Return the card of `write_file`'s network, or one that says something else."""
    usual = Card(
        version=1,
        architecture="yolov10n.yaml",
        class_names=("circle", "square"),
        input=Input(imgsz=SIDE, batch=1),
        output=Output(head="one2one", nms_iou=None, confidence=0.001, max_detections=300),
        storage="int4",
        weight_bits={"4": 1},
        activation_bits={},
        origin=Origin(
            run_id="run",
            method="ema+qc",
            summary_sha256=None,
            weights_sha256="0" * 64,
            value=None,
            val_images=None,
            dataset=None,
        ),
    )
    return msgspec.structs.replace(usual, **changes)


def network() -> onnx.ModelProto:
    """Return a graph of one int4 convolution that finds class 0 in the middle, many times."""
    size = SIDE // CELLS
    codes = np.random.default_rng(0).integers(-8, 8, (6, 3, size, size))
    codes[5] = 0  # the class
    stored = helper.make_tensor("codes", TensorProto.INT4, codes.shape, codes.flatten().tolist())
    scales = np.full(6, 0.01, np.float32)
    bias = np.array([4, 8, 24, 28, 0.5, 0], np.float32)
    shape = np.array([0, 6, CELLS * CELLS], np.int64)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["weight"], axis=0),
        helper.make_node("Conv", ["images", "weight", "bias"], ["cells"], strides=[size, size]),
        helper.make_node("Reshape", ["cells", "shape"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["detections"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, CELLS * CELLS, 6])],
        [
            stored,
            numpy_helper.from_array(scales, "scales"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(shape, "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def write_file(
    path: Path, own: Card | bytes | None = None, model: onnx.ModelProto | None = None
) -> Path:
    """Write a network and its card, which may be any bytes."""
    model = model or network()
    said = own if isinstance(own, bytes) else msgspec.json.encode(own or card())
    helper.set_model_props(model, {KEY: said.decode("utf-8", "surrogateescape")})
    path.write_bytes(model.SerializeToString())
    return path
