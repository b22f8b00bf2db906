"""The latent weights of a fake-quantized model, their scales, grids and integer codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qatval.quant.quantized_conv import quantized_layers, weight_grid, weight_scale_value
from qatval.quant.rounding import round_to_codes


def flatten(tensor: Tensor) -> Tensor:
    """Return a tensor of a weight's shape as ``(out * height * width * in,)``.

    In that order a weight in the memory format that models train in (channels last) lies in
    memory: what comes out is a view of it and no copy.
    """
    return tensor.permute(0, 2, 3, 1).reshape(-1)


def unflatten(flat: Tensor, shape: torch.Size) -> Tensor:
    """Undo `flatten`, given the weight's shape ``(out, in, height, width)``."""
    out, channels, height, width = shape
    return flat.view(out, height, width, channels).permute(0, 3, 1, 2)


class LatentWeights:
    """The latent weights of a model's quantized layers, in the order of the model.

    A view: it holds the layers and no copies, so it always shows the weights as they are.

    Attributes:
        names: Full name of each layer.
        layers: The layers.
        grids: Grid of each layer.
        sizes: Number of weights of each layer.
        counts: Number of scales of each layer.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look at the quantizers that `qatval.quant.layers.insert_quantizers` made.

        Args:
            model: Fake-quantized model, on the device that it stays on.

        Raises:
            ValueError: If the model has no quantized layer.
        """
        found: dict[str, Any] = dict(quantized_layers(model))
        if not found:
            raise ValueError("the model has no quantized layer")
        self.names = tuple(found)
        self.layers: Sequence[Any] = tuple(found.values())
        self.grids = tuple(map(weight_grid, self.layers))
        self.sizes = [weight.numel() for weight in self.weights()]
        self.counts = [value.numel() for value in self.values()]
        # Tensors: on a GPU, division by a Python number is a multiplication by its reciprocal.
        self._thresholds = self._of_each_scale([grid.threshold for grid in self.grids])
        self._least = self._of_each_scale([grid.least for grid in self.grids])

    def _of_each_scale(self, numbers: Sequence[float]) -> Tensor:
        spread = [n for n, count in zip(numbers, self.counts, strict=True) for _ in range(count)]
        return torch.tensor(spread, device=self.layers[0].weight.device)

    def weights(self) -> list[Tensor]:
        """Return the latent weights, ``(out, in / groups, height, width)`` each."""
        return [layer.weight for layer in self.layers]

    def values(self) -> list[Tensor]:
        """Return what the scales come from, see `weight_scale_value`."""
        return list(map(weight_scale_value, self.layers))

    @torch.no_grad()
    def flat_scales(self, values: Tensor) -> Tensor:
        """Return the scales that come from values, both one after the other in one dimension."""
        return torch.maximum(values.abs(), self._least).div_(self._thresholds)

    def to_values(self, to_scales: Tensor, values: Tensor) -> Tensor:
        """Return the gradients to the values, given those to the scales, all in one dimension.

        Values below the least scale get theirs as well, as Brevitas has it: they could never
        leave otherwise.
        """
        return (to_scales / self._thresholds).mul_(values.sgn())

    @torch.no_grad()
    def scales(self) -> list[Tensor]:
        """Return the scales, ``()`` or ``(out, 1, 1, 1)`` each."""
        values = self.values()
        flat = torch.cat([value.reshape(-1) for value in values])
        parts = torch.split(self.flat_scales(flat), self.counts)
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    @torch.no_grad()
    def codes(self) -> list[Tensor]:
        """Return the integer codes that the weights round to, float32 in the weights' shapes."""
        return [
            round_to_codes(weight, scale, grid.low, grid.high)
            for weight, scale, grid in zip(self.weights(), self.scales(), self.grids, strict=True)
        ]

    def flat_codes(self) -> Tensor:
        """Return the integer codes of all weights one after the other, int8; see `flatten`."""
        return torch.cat([flatten(codes).to(torch.int8) for codes in self.codes()])

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Return the part of each layer, in the shape of its weight, of what `flat_codes` joins."""
        parts = torch.split(flat, self.sizes)
        return [unflatten(part, w.shape) for part, w in zip(parts, self.weights(), strict=True)]
