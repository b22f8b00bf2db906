"""BatchNorm statistics that stay the FP32 checkpoint's, but for what sets a model apart from it.

Statistics of a few images are those images': replaced by such, the FP32 model itself loses a sixth
of its mAP (``presets/quantization.toml``). What differs between two models on the *same* images
hardly depends on which images they are. So the checkpoint's statistics, of its whole training, are
kept as the anchor, and the images say only how far to move from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from qatval.quant.batchnorm import (
    Statistics,
    in_evaluation,
    measure,
    replace,
    statistics,
    tracking,
)
from qatval.quant.layers import batchnorm_after

Batches = Callable[[], Iterable[Tensor]]
"""Returns the calibration images from the first batch on, each ``(batch, 3, height, width)``."""


class Anchor:
    """A reference's running statistics, and those that it has on some images.

    With ``m`` and ``v`` the mean and variance of a channel over the images, before its BatchNorm,
    in a model (q) and in the reference (f), both normalised by the images' own statistics, and
    ``running`` those of the reference, the model gets::

        running_mean + m_q - m_f        running_var * v_q / v_f

    with BatchNorm's eps in both variances. The reference itself keeps what it has.
    """

    def __init__(self, reference: nn.Module, batches: Batches) -> None:
        """Measure the reference.

        Args:
            reference: The FP32 model; it is left as it is and not kept.
            batches: The images, on its device.
        """
        self._batches = batches
        self._kept = {
            name: (mean.clone(), var.clone(), layer.eps)
            for name, layer in tracking(reference)
            for mean, var in [statistics(layer)]
        }
        self._fresh = measure(reference, batches())

    def settle(self, model: nn.Module) -> None:
        """Give a model of the same BatchNorm layers its statistics, in place."""
        ours: Statistics = {}
        for name, (m_q, v_q) in measure(model, self._batches()).items():
            mean, var, eps = self._kept[name]
            m_f, v_f = self._fresh[name]
            ours[name] = mean + m_q - m_f, var * (v_q + eps) / (v_f + eps)
        replace(model, ours)


@torch.no_grad()
def shift(model: nn.Module, reference: nn.Module, batches: Batches) -> None:
    """Anchor a model's statistics, in place, and correct biases where there are none.

    Where no BatchNorm follows a convolution its bias takes the mean, ``bias += m_f - m_q``, with
    the statistics of all others settled already: bias correction (Nagel et al., *Data-Free
    Quantization*, ICCV 2019, section 4.2, with images in the place of BatchNorm's assumptions).

    Args:
        model: Fake-quantized, or with integer weights; trained or not.
        reference: The FP32 model that it was made from: the same BatchNorm layers.
        batches: The calibration images, on the models' device.
    """
    Anchor(reference, batches).settle(model)
    _correct_biases(model, reference, batches)


def shift_statistics(model: nn.Module, reference: nn.Module, batches: Batches) -> nn.Module:
    """Return a copy of a model with anchored statistics and corrected biases; see `shift`."""
    shifted = deepcopy(model)
    shift(shifted, reference, batches)
    return shifted


def _correct_biases(model: nn.Module, reference: nn.Module, batches: Batches) -> None:
    names = [
        name
        for name, layer in _convolutions(reference)
        if layer.bias is not None and batchnorm_after(reference, name) is None
    ]
    if not names:
        return
    ours, theirs = (_output_means(m, names, batches) for m in (model, reference))
    for name in names:
        bias: Any = model.get_submodule(name).bias
        bias += theirs[name] - ours[name]


def _output_means(model: nn.Module, names: Iterable[str], batches: Batches) -> dict[str, Tensor]:
    """Return the mean of each channel of some layers' outputs, in evaluation mode."""
    sums: dict[str, Tensor] = {}

    def observe(name: str, y: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + y.mean((0, 2, 3)) * len(y)

    with in_evaluation(model), contextlib.ExitStack() as temporarily:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(
                lambda _, __, y, name=name: observe(name, y)
            )
            temporarily.callback(hook.remove)
        seen = sum(len(batch) for batch in batches() if model(batch) is not None)
    return {name: total / seen for name, total in sums.items()}


def _convolutions(model: nn.Module) -> Iterable[tuple[str, nn.Conv2d]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
