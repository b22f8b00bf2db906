"""Whether an exported graph is the model: its codes are the run's, and it answers as torch does.

What is compared is what detections are chosen from, the box and the scores of every anchor: the
choice itself is another one wherever two scores tie. The bounds leave room for sums in another
order and for BatchNorm multiplied into weights, nothing else.

Where inputs of layers are rounded, a last bit can put a number on the other side of a rounding
threshold, and a code that differs moves others in the layers that follow. The same input has the
same codes (`qatval.deploy.export.graph`), so of such models the mean difference is held to bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from qatval.core.errors import QatvalError
from qatval.deploy.export.folding import FoldedLayer
from qatval.deploy.export.graph import stored_codes, stored_weights

BOX = 1e-4
"""Largest difference of a box's side, as a share of the input's side."""
SCORE = 1e-3
"""Largest difference of a score, as a share of it."""
MEAN_BOX, MEAN_SCORE = 1e-2, 1e-1
"""The same on average, where inputs of layers are rounded."""

_SEED = 0
_LEAST_SCORE = 1e-3  # the runtime's sigmoid has an absolute error, which small ones drown in


def require_same_codes(model: onnx.ModelProto, layers: Mapping[str, FoldedLayer]) -> None:
    """Refuse a graph whose weights are not the run's, to the bit.

    Raises:
        QatvalError: It names the layer.
    """
    codes, floats = stored_codes(model), stored_weights(model)
    for name, layer in layers.items():
        same = (
            np.array_equal(codes[name], layer.codes.numpy())
            if name in codes
            else np.array_equal(floats.get(name, np.empty(0)), layer.weight.numpy())
        )
        if not same:
            raise QatvalError(
                f"the exported graph does not hold the weights of '{name}' as the run delivered "
                "them; nothing was written, please report it with the versions of torch and "
                "onnxscript"
            )


def require_same_answer(
    model: onnx.ModelProto,
    candidates: str,
    reference: Callable[[Tensor], Tensor],
    images: int,
    *,
    channels: int,
    rounded: bool,
) -> None:
    """Refuse a graph that does not compute in ONNX Runtime what the model does in torch.

    Args:
        model: The graph, of one input.
        candidates: The value in it to compare: of every image and anchor the four numbers of a
            box, in pixels of the input, and a score for each class.
        reference: Returns the same of the same images.
        images: How many to compute at once.
        channels: The axis of these numbers.
        rounded: Whether inputs of layers are quantized.

    Raises:
        QatvalError: It says how far they differ.
    """
    (entry,) = model.graph.input
    side = entry.type.tensor_type.shape.dim[-1].dim_value
    batch = np.random.default_rng(_SEED).random((images, 3, side, side), np.float32)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(batch)).numpy()
    found = _computed(model, candidates, batch)
    (box, score), (true_box, true_score) = (
        np.split(x.astype(np.float64), [4], channels) for x in (found, wanted)
    )
    typical = np.mean if rounded else np.max
    by = (
        float(typical(abs(box - true_box))) / side,
        float(typical(abs(score - true_score) / (true_score + _LEAST_SCORE))),
    )
    bounds = (MEAN_BOX, MEAN_SCORE) if rounded else (BOX, SCORE)
    if not all(one <= bound for one, bound in zip(by, bounds, strict=True)):  # nor a NaN
        raise QatvalError(
            f"the exported graph does not answer as the run's model: boxes differ by {by[0]:.2g} "
            f"of the input's side and scores by {by[1]:.2g} of theirs, expected up to "
            f"{bounds[0]:g} and {bounds[1]:g}; nothing was written, please report it with the "
            "versions of torch, onnxscript and onnxruntime"
        )


def _computed(
    model: onnx.ModelProto, value: str, images: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return what ONNX Runtime makes of images at one place of a graph."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.add().CopyFrom(
        onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(
        probed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (answer,) = session.run(None, {model.graph.input[0].name: images})
    return np.asarray(answer)
