"""Whether an exported graph is the model: same codes, same rounding, same answer as in torch.

What is compared of the answer is what detections are chosen from, the box and the scores of every
anchor: the choice itself is another one wherever two scores tie. The bounds leave room for sums in
another order and for BatchNorm multiplied into weights, nothing else.

Where inputs of layers are rounded, a last bit can put a number on the other side of a rounding
threshold, and the code that differs moves all that follows: a thousandth of a per cent on every
BatchNorm moved boxes of an untrained W4A4 model by a fiftieth of the image. So the two are told
apart. Every rounding in the graph must give what the layer's own gives of the same numbers, to the
bit, and the answer is compared with no input rounded on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from qatval.core.errors import QatvalError
from qatval.deploy.export.folding import FoldedLayer
from qatval.deploy.export.graph import roundings, stored_codes, stored_weights, unrounded
from qatval.quant.rounding import fake_quantize

BOX = 1e-4
"""Largest difference of a number of a box, as a share of the input's side."""
SCORE = 1e-3
"""Largest difference of a score, as a share of it and of `LEAST_SCORE` together."""
LEAST_SCORE = 1e-3
"""ONNX Runtime's sigmoid is exact to some 1e-7, not to a share of what it gives."""

_SEED = 0
_REPORT = "nothing was written, please report it with the versions of torch, onnxscript and onnx"


def seeded_images(count: int, side: int) -> NDArray[np.float32]:
    """Return the images that graphs are checked on, the same each time."""
    return np.random.default_rng(_SEED).random((count, 3, side, side), np.float32)


def require_same_codes(model: onnx.ModelProto, layers: Mapping[str, FoldedLayer]) -> None:
    """Refuse a graph whose weights are not the run's, to the bit.

    Raises:
        QatvalError: It names the layer.
    """
    codes, floats = stored_codes(model), stored_weights(model)
    for name, layer in layers.items():
        if name in codes:
            same = np.array_equal(codes[name], layer.codes.numpy())
        else:
            same = name in floats and np.array_equal(floats[name], layer.weight.numpy())
        if not same:
            raise QatvalError(
                f"the exported graph does not hold the weights of '{name}' as the run delivered "
                f"them; {_REPORT}"
            )


def require_same_rounding(
    model: onnx.ModelProto, layers: Mapping[str, FoldedLayer], images: NDArray[np.float32]
) -> None:
    """Refuse a graph that rounds the input of a layer otherwise than the layer does, to the bit.

    Raises:
        QatvalError: It names the layer.
    """
    grids = {name: layer.input for name, layer in layers.items() if layer.input is not None}
    values = roundings(model)
    computed = _computed(model, [value for pair in values.values() for value in pair], images)
    for name, grid in grids.items():
        if name in values:
            before, after = (computed[value] for value in values[name])
            rounded = fake_quantize(torch.from_numpy(before), grid.scale, grid.low, grid.high)
        if name not in values or not np.array_equal(after, rounded.numpy()):
            raise QatvalError(
                f"the exported graph does not round the input of '{name}' as the run's model does; "
                f"{_REPORT}"
            )


def require_same_answer(
    model: onnx.ModelProto,
    candidates: str,
    reference: Callable[[Tensor], Tensor],
    images: NDArray[np.float32],
    *,
    channels: int,
) -> None:
    """Refuse a graph that, without its roundings, computes something else than torch does.

    Args:
        model: The graph.
        candidates: The value in it to compare: of every image and anchor the four numbers of a
            box, in pixels of the input, and a score for each class.
        reference: Returns the same of the same images, no input of a layer rounded.
        images: Of `seeded_images`.
        channels: The axis of these numbers.

    Raises:
        QatvalError: It says how far they differ.
    """
    with torch.no_grad():
        wanted = reference(torch.from_numpy(images)).numpy()
    found = _computed(unrounded(model), [candidates], images)[candidates]
    (box, score), (true_box, true_score) = (
        np.split(x.astype(np.float64), [4], channels) for x in (found, wanted)
    )
    by_box = float(abs(box - true_box).max()) / images.shape[-1]
    by_score = float((abs(score - true_score) / (true_score + LEAST_SCORE)).max())
    if not (by_box <= BOX and by_score <= SCORE):  # nor a NaN
        raise QatvalError(
            f"the exported graph does not answer as the run's model: boxes differ by {by_box:.2g} "
            f"of the input's side and scores by {by_score:.2g} of theirs, expected up to {BOX:g} "
            f"and {SCORE:g}; {_REPORT}"
        )


def _computed(
    model: onnx.ModelProto, values: Sequence[str], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Return what ONNX Runtime makes of images at some places of a graph."""
    if not values:
        return {}
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for value in dict.fromkeys(values):
        probed.graph.output.add(name=value).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    # weights are unpacked once, and nothing is computed in integers that the graph has in float
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    answers = session.run(names, {model.graph.input[0].name: images})
    return dict(zip(names, map(np.asarray, answers), strict=True))
