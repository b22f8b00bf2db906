"""What happens between an FP32 checkpoint and the first training step.

Rounding a weight to 4 bits moves the mean and the variance of every channel behind it, and the
BatchNorm there goes on with the statistics of the weight as it was. On a YOLOv10n trained on COCO
that alone takes mAP 50-95 from .348 to .029 (one scale per channel; ``presets/quantization.toml``
has the table). Fresh statistics repair most of it, but they are those of a few calibration images,
while the checkpoint's are those of its whole training: the FP32 model itself loses a sixth by them.
*Shifted* statistics take from the images only what quantization changed. Of the FP32 model they
change nothing, whatever the images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from qatval.config import Start, StartScale
from qatval.quant.batchnorm import reestimate, statistics, tracking
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import Grid, batchnorm_after
from qatval.quant.rounding import round_to_codes

Batches = Callable[[], Iterable[Tensor]]
"""Returns the calibration images from the first batch on, each ``(batch, 3, height, width)``."""

# Shares of max|w| among which the scale of least squared error is searched.
_SHARES = torch.linspace(0.3, 1.0, 71)


def start(model: nn.Module, reference: nn.Module, how: Start, batches: Batches) -> nn.Module:
    """Return a copy of a fake-quantized model, ready to train.

    Args:
        model: Fake-quantized, its weight scales as they were inserted.
        reference: The FP32 model that it was made from, on the same device.
        how: What is done to scales and statistics.
        batches: The calibration images.
    """
    started = deepcopy(model)
    initialise_scales(started, how.scale)
    if how.statistics == "reestimated":
        started = reestimate(started, batches())
    elif how.statistics == "shifted":
        started = shift_statistics(started, reference, batches)
    return started


@torch.no_grad()
def initialise_scales(model: nn.Module, how: StartScale) -> None:
    """Set where the learned weight scales of a model start, in place.

    ``"max"``: ``max|w| / largest code``; nothing is clipped. ``"mse"``: the one of 71 shares of
    that with the least squared error of the weights. ``"lsq"``: ``2 mean|w| / sqrt(largest code)``
    (Esser et al., ICLR 2020, section 2.1).

    Args:
        model: Fake-quantized; its scales are parameters unless ``how`` is ``"max"``.
        how: One of the three.
    """
    if how == "max":
        return  # as `insert_quantizers` left them
    weights = LatentWeights(model)
    for weight, value, grid in zip(weights.weights(), weights.values(), weights.grids, strict=True):
        rows = weight.reshape(value.numel(), -1)
        if how == "lsq":
            scale = 2.0 * rows.abs().mean(1) / grid.high**0.5
        else:
            scale = _least_squares(rows, grid)
        value.copy_((scale * grid.threshold).clamp(min=grid.least).view_as(value))


def _least_squares(rows: Tensor, grid: Grid) -> Tensor:
    full = rows.abs().amax(1).clamp(min=grid.least) / grid.threshold
    candidates = _SHARES.to(rows.device)[:, None] * full
    errors = torch.stack(
        [
            (round_to_codes(rows, s[:, None], grid.low, grid.high) * s[:, None] - rows)
            .square()
            .sum(1)
            for s in candidates
        ]
    )
    return candidates.gather(0, errors.argmin(0)[None])[0]


def shift_statistics(model: nn.Module, reference: nn.Module, batches: Batches) -> nn.Module:
    """Return a copy of a model with the reference's statistics, moved by what sets it apart.

    With ``m`` and ``v`` the mean and variance of a channel over the images, before its BatchNorm,
    in the model (q) and in the reference (f), both normalised by the images' own statistics, and
    ``running`` those of the reference::

        running_mean + m_q - m_f        running_var * v_q / v_f

    After a training these are fresh statistics as well, but for what sets the few images apart from
    the many that the reference has seen.

    Where no BatchNorm follows a convolution its bias takes the mean, ``bias += m_f - m_q``, with
    the statistics of all others shifted already: bias correction (Nagel et al., *Data-Free
    Quantization*, ICCV 2019, section 4.2, with images in the place of BatchNorm's assumptions).

    Args:
        model: Fake-quantized, or with integer weights; trained or not.
        reference: The FP32 model that it was made from: the same BatchNorm layers.
        batches: The calibration images, on the models' device.
    """
    shifted = deepcopy(model)
    ours = dict(tracking(reestimate(model, batches())))
    theirs = dict(tracking(reestimate(reference, batches())))
    with torch.no_grad():
        kept = dict(tracking(reference))
        for name, layer in tracking(shifted):
            (m_q, v_q), (m_f, v_f) = statistics(ours[name]), statistics(theirs[name])
            mean, var = statistics(kept[name])
            new_mean, new_var = statistics(layer)
            new_mean.copy_(mean + m_q - m_f)
            new_var.copy_(var * (v_q + layer.eps) / (v_f + layer.eps))
        _correct_biases(shifted, reference, batches)
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
    copy = deepcopy(model).eval()

    def observe(name: str, y: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + y.mean((0, 2, 3)) * len(y)

    with contextlib.ExitStack() as temporarily:
        for name in names:
            hook = copy.get_submodule(name).register_forward_hook(
                lambda _, __, y, name=name: observe(name, y)
            )
            temporarily.callback(hook.remove)
        seen = sum(len(batch) for batch in batches() if copy(batch) is not None)
    return {name: total / seen for name, total in sums.items()}


def _convolutions(model: nn.Module) -> Iterable[tuple[str, nn.Conv2d]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
