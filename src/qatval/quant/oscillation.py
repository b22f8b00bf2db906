"""Oscillation of quantized weights: how often their integer codes reverse.

A latent weight that the loss wants between two codes is pushed to and fro over the rounding
threshold between them, and its code with it (Nagel et al., *Overcoming Oscillations in
Quantization-Aware Training*, ICML 2022). Definitions here are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from msgspec.structs import astuple
from torch import Tensor

from qatval.core.measurements import EpochOscillation, LayerOscillation, Oscillation
from qatval.quant.latent import LatentWeights

NEAR = 0.05
"""Distance from a rounding threshold, in steps, within which a weight counts as near it."""


class OscillationTracker:
    """Follows the integer codes of all weights through a training.

    A weight oscillates at step t, ``o_t = 1``, when its code changes in the direction opposite to
    its previous change. Its frequency is ``f_t = m * o_t + (1 - m) * f_(t-1)`` from ``f_0 = 0``
    (Nagel et al.). How far the code moves makes no difference.

    With ``m = 0.01`` and a threshold of 0.005, one reversal marks a weight as oscillating for
    about 69 steps (``ln 2 / m``). Only in a run much longer than that does the share mean what it
    means in the paper; in a run of 100 steps it says "reversed lately".

    A step is a dozen operations over all weights at once, none of which waits for a GPU. Masks are
    int8, which a CPU adds and multiplies several times sooner than booleans.

    Attributes:
        frequency: Oscillation frequency of each weight, flat in the order of ``weights``, float32.
        steps: Steps observed so far.
    """

    def __init__(
        self, weights: LatentWeights, momentum: float = 0.01, threshold: float = 0.005
    ) -> None:
        """Start at the weights' present codes and scales: those that the first forward will use.

        Args:
            weights: What to follow, on the device that it stays on.
            momentum: ``m`` above; 0.01 is the official code's.
            threshold: Frequency above which a weight is called oscillating.
        """
        self.momentum = momentum
        self.threshold = threshold
        self.steps = 0
        self._weights = weights
        self._first_scales = weights.scales()
        self._codes = weights.flat_codes()
        self._direction = torch.zeros_like(self._codes)
        self.frequency = torch.zeros_like(self._codes, dtype=torch.float32)
        self._flips = torch.zeros_like(self._codes, dtype=torch.int32)
        self._reversals = torch.zeros_like(self._flips)
        self._epochs: list[EpochOscillation] = []
        self._counted = 0, 0, 0

    @torch.no_grad()
    def observe(self, codes: Tensor) -> None:
        """Take in one optimizer step.

        Args:
            codes: The codes that the step's forward used, all layers one after the other in the
                order of ``weights``, int8. Copied.
        """
        before = self._codes
        # Not the sign of a difference: that of two 8-bit codes does not fit into 8 bits.
        change = codes.gt(before).view(torch.int8) - codes.lt(before).view(torch.int8)
        moved = change.abs()
        turned = change.mul(self._direction).clamp_(max=0).neg_()
        self._direction.mul_(1 - moved).add_(change)
        self._flips.add_(moved)
        self._reversals.add_(turned)
        self.frequency.mul_(1.0 - self.momentum).add_(turned, alpha=self.momentum)
        before.copy_(codes)
        self.steps += 1

    def end_epoch(self, epoch: int) -> EpochOscillation:
        """Close an epoch and return what it was like.

        Args:
            epoch: Its number, counted from 1.
        """
        now = self.steps, int(self._flips.sum()), int(self._reversals.sum())
        steps, flips, reversals = (a - b for a, b in zip(now, self._counted, strict=True))
        self._counted = now
        chances = max(steps, 1) * self._codes.numel()
        layers = self._layers()
        record = EpochOscillation(
            epoch=epoch,
            oscillating=_over_all(layers, "oscillating"),
            change_rate=flips / chances,
            reversal_rate=reversals / chances,
            near_threshold=_over_all(layers, "near_threshold"),
            threshold_distance=_over_all(layers, "threshold_distance"),
            scale_drift=_over_all(layers, "scale_drift"),
        )
        self._epochs.append(record)
        return record

    def result(self) -> Oscillation:
        """Return everything there is to say so far."""
        layers = self._layers()
        return Oscillation(
            momentum=self.momentum,
            threshold=self.threshold,
            steps=self.steps,
            oscillating=_over_all(layers, "oscillating"),
            epochs=tuple(self._epochs),
            layers=tuple(layers),
        )

    def state(self) -> dict[str, Tensor]:
        """Return everything that was followed so far, as tensors; they are no copies."""
        return {
            **self._followed(),
            "first_scales": torch.cat([scale.reshape(-1) for scale in self._first_scales]),
            "counted": torch.tensor([self.steps, *self._counted]),
            "epochs": torch.tensor([astuple(e) for e in self._epochs], dtype=torch.float64),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned, of a tracker of the same weights."""
        for name, tensor in self._followed().items():
            tensor.copy_(state[name])
        parts = torch.split(state["first_scales"], self._weights.counts)
        for scale, saved in zip(self._first_scales, parts, strict=True):
            scale.copy_(saved.view_as(scale))
        self.steps, *counted = state["counted"].tolist()
        steps, flips, reversals = counted
        self._counted = steps, flips, reversals
        self._epochs = [
            EpochOscillation(int(epoch), *values) for epoch, *values in state["epochs"].tolist()
        ]

    def _followed(self) -> dict[str, Tensor]:
        return {
            "codes": self._codes,
            "direction": self._direction,
            "frequency": self.frequency,
            "flips": self._flips,
            "reversals": self._reversals,
        }

    @torch.no_grad()
    def _layers(self) -> list[LayerOscillation]:
        weights = self._weights
        return [
            LayerOscillation(
                name=name,
                weights=size,
                oscillating=int((frequency > self.threshold).sum()) / size,
                flips=int(flips.sum()) / size,
                reversals=int(reversals.sum()) / size,
                near_threshold=int((distance < NEAR).sum()) / size,
                threshold_distance=_mean(distance),
                scale_drift=_mean((scale / first_scale).log2().abs()),
            )
            for name, size, distance, scale, first_scale, frequency, flips, reversals in zip(
                weights.names,
                weights.sizes,
                threshold_distances(weights),
                weights.scales(),
                self._first_scales,
                torch.split(self.frequency, weights.sizes),
                torch.split(self._flips, weights.sizes),
                torch.split(self._reversals, weights.sizes),
                strict=True,
            )
        ]


@torch.no_grad()
def threshold_distances(weights: LatentWeights) -> Iterator[Tensor]:
    """Yield, per layer, each weight's distance from the nearest rounding threshold, in steps.

    The thresholds are those between two codes, ``low + 0.5 .. high - 0.5``: a weight beyond the
    largest code is far from any and not near the next one. No distance exceeds 0.5.
    """
    for weight, scale, grid in zip(weights.weights(), weights.scales(), weights.grids, strict=True):
        ratio = weight / scale
        nearest = ratio.floor().clamp_(grid.low, grid.high - 1.0).add_(0.5)
        yield ratio.sub_(nearest).abs_().clamp_(max=0.5)


def _mean(values: Tensor) -> float:
    """Return the mean of what is finite, or 0: a diverged training still has a record."""
    finite = values[values.isfinite()]
    return float(finite.mean()) if finite.numel() else 0.0


def _over_all(layers: Sequence[LayerOscillation], name: str) -> float:
    """Return the mean over all weights of a field that is a mean over each layer's weights."""
    weighted: float = sum(getattr(layer, name) * layer.weights for layer in layers)
    return weighted / sum(layer.weights for layer in layers)
