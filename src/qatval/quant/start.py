"""Scales and BatchNorm statistics of the first training step.

Rounding a weight to 4 bits moves the mean and the variance of every channel behind it, and the
BatchNorm there goes on with the statistics of the weight as it was. On a YOLOv10n trained on COCO
that alone takes mAP 50-95 from .348 to .029 (one scale per channel; ``presets/quantization.toml``
has the table). Fresh statistics repair most of it, but they are those of a few calibration images,
while the checkpoint's are those of its whole training: the FP32 model itself loses a sixth by them.
*Shifted* statistics take from the images only what quantization changed. Of the FP32 model they
change nothing, whatever the images.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from qatval.core.quantization import Start, StartScale
from qatval.quant.anchoring import Batches, shift
from qatval.quant.batchnorm import measure, replace
from qatval.quant.latent import LatentWeights
from qatval.quant.quantized_conv import Grid
from qatval.quant.rounding import round_to_codes

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
        replace(started, measure(started, batches()))
    elif how.statistics == "shifted":
        shift(started, reference, batches)
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
