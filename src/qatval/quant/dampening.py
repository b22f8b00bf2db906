"""Dampening of oscillations: a penalty that draws latent weights to the middle of their step."""

from __future__ import annotations

import math

import torch

from qatval.core.errors import UsageError
from qatval.quant.latent import LatentWeights
from qatval.quant.stabilizing import Stabilizer


class Dampening(Stabilizer):
    """Adds the gradient of ``lambda * ||q(w) - clip(w, s * low, s * high)||^2`` to the loss's.

    Oscillation dampening of Nagel et al. (ICML 2022): ``q(w)`` is the quantized weight, taken as a
    constant, the norm runs over all weights, and lambda follows a cosine from 0 to ``weight`` over
    the training. Weights that the grid clips feel nothing.

    The gradient to a latent weight is ``2 * lambda * (clip(w) - q(w))``: between two thresholds
    ``clip(w)`` is ``w``, and where the grid clips, both terms are the same number. The gradient to
    the scale is zero for the same reasons: ``q(w)`` is constant, within the grid ``clip(w)`` does
    not depend on the scale, and beyond it the norm that would be differentiated is zero.

    The paper's loss is a mean over images. The detection loss is a sum, so lambda counts once per
    image here.
    """

    def __init__(self, weights: LatentWeights, weight: float) -> None:
        """Dampen these weights.

        Args:
            weights: What to dampen.
            weight: lambda at the end of the training, per image.

        Raises:
            UsageError: If ``weight`` is negative, which would drive weights to the thresholds.
        """
        super().__init__(weights)
        if weight < 0.0:
            raise UsageError(f"the weight of dampening must not be negative, got {weight}")
        self.weight = weight

    def strength(self, progress: float) -> float:
        """Return lambda when this share of the training is done."""
        return self.weight * (1.0 - math.cos(math.pi * progress)) / 2.0

    @torch.no_grad()
    def before_step(self, progress: float, images: int) -> None:
        """Add the penalty's gradient; a weight that the loss gives none has no part in the step."""
        factor = 2.0 * self.strength(progress) * images
        view = self.weights
        for weight, codes, scale, grid in zip(
            view.weights(), view.codes(), view.scales(), view.grids, strict=True
        ):
            if weight.grad is not None:
                clipped = weight.clamp(grid.low * scale, grid.high * scale)
                weight.grad.add_(clipped.sub_(codes.mul_(scale)), alpha=factor)
