"""Latent weights: what training moves, and the grids that its forward rounds it to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qatval.quant.layers import quantized_layers


@dataclass(frozen=True, order=True)
class Grid:
    """Integer codes and what stands between a scale and the value that it comes from.

    A weight becomes ``clamp(round(w / s), low, high) * s`` with ``s = max(|value|, least) /
    threshold``, where the value is a parameter or a statistic of the weights.
    """

    low: float
    high: float
    threshold: float
    least: float


class LatentWeights:
    """The latent weights of a model's quantized layers, in the order of the model.

    A view: it holds the layers and no copies, so it always shows the weights as they are.

    Attributes:
        names: Full name of each layer.
        layers: The layers.
        grids: Grid of each layer.
        sizes: Number of weights of each layer.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look at the quantizers that `qatval.quant.layers.insert_quantizers` made.

        Raises:
            ValueError: If the model has no quantized layer.
        """
        found: dict[str, Any] = dict(quantized_layers(model))
        if not found:
            raise ValueError("the model has no quantized layer")
        self.names = tuple(found)
        self.layers: Sequence[Any] = tuple(found.values())
        self._quantizers = [layer.weight_quant.tensor_quant for layer in self.layers]
        self.grids = tuple(_grid(quantizer) for quantizer in self._quantizers)
        self.sizes = tuple(weight.numel() for weight in self.weights())

    def weights(self) -> list[Tensor]:
        """Return the latent weights, ``(out, in / groups, height, width)`` each."""
        return [layer.weight for layer in self.layers]

    def values(self) -> list[Tensor]:
        """Return what the scales come from, ``()`` or ``(out, 1, 1, 1)`` each, differentiable.

        The learned parameters, or ``max|w|`` where scales are statistics of the weights.
        """
        found = []
        for layer, quantizer in zip(self.layers, self._quantizers, strict=True):
            scaling = quantizer.scaling_impl
            learned = hasattr(scaling, "value")
            found.append(scaling.value if learned else scaling.parameter_list_stats(layer.weight))
        return found

    @torch.no_grad()
    def scales(self) -> list[Tensor]:
        """Return the scales, ``()`` or ``(out, 1, 1, 1)`` each."""
        return [
            value.abs().clamp_(min=grid.least) / grid.threshold
            for value, grid in zip(self.values(), self.grids, strict=True)
        ]

    @torch.no_grad()
    def codes(self) -> list[Tensor]:
        """Return the integer codes that the weights round to, float32 in the weights' shapes."""
        return [
            (weight / scale).round_().clamp_(grid.low, grid.high)
            for weight, scale, grid in zip(self.weights(), self.scales(), self.grids, strict=True)
        ]


def _grid(quantizer: Any) -> Grid:
    bits = quantizer.msb_clamp_bit_width_impl()
    grid, scaling = quantizer.int_quant, quantizer.scaling_impl
    least = getattr(scaling, "clamp_scaling", None) or getattr(
        scaling.stats_scaling_impl, "restrict_clamp_scaling", None
    )
    return Grid(
        low=float(grid.min_int(bits)),
        high=float(grid.max_int(bits)),
        threshold=float(quantizer.int_scaling_impl(bits)),
        least=_minimum(least),
    )


def _minimum(clamp: Any) -> float:
    """Return the smallest scale value that one of Brevitas' clamping modules lets through."""
    inner = getattr(clamp, "clamp_scaling", clamp)
    return float(getattr(inner, "min_val", None) or 0.0)
