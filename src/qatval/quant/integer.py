"""The model as it would be deployed: integer codes, scales and ranges instead of quantizers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qatval.quant.quantized_conv import (
    codes_and_scale,
    input_grid,
    input_scale,
    quantized_layers,
)
from qatval.quant.rounding import fake_quantize


class IntegerConv2d(nn.Module):
    """Convolution whose weight is ``codes * scale``, of an input that is rounded to codes as well.

    All are buffers, so that a file carries them.

    Attributes:
        codes: int8, ``(out, in / groups, height, width)``.
        scale: float32, ``()`` or ``(out, 1, 1, 1)``.
        bias: float32, ``(out,)``, or None.
        input_scale: float32, ``()``, or None where the input stays in float.
        input_range: Smallest and largest code of the input, int8, ``(2,)``, or None as well.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_range: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        codes: Tensor,
        scale: Tensor,
        input_scale: Tensor | None = None,
        input_range: Tensor | None = None,
    ) -> None:
        """Take over a convolution's bias and geometry, with these codes and scale as its weight."""
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("input_range", input_range)
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with, float32."""
        return self.codes * self.scale

    @property
    def levels_per_scale(self) -> int:
        """Largest number of distinct codes that share one scale."""
        groups = self.codes.flatten(1) if self.scale.numel() > 1 else self.codes.flatten()[None]
        return max(int(group.unique().numel()) for group in groups)

    def quantized(self, x: Tensor) -> Tensor:
        """Return an input as the convolution reads it, differentiable in it."""
        if self.input_scale is None or self.input_range is None:
            return x
        low, high = self.input_range.tolist()
        return fake_quantize(x, self.input_scale, low, high)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, with ``x`` of shape ``(batch, in, height, width)``."""
        x = self.quantized(x)
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def to_integer(model: nn.Module) -> nn.Module:
    """Return a copy of a fake-quantized model with every quantized layer frozen to its codes.

    The copy computes what the original computes in evaluation mode, bit for bit.

    Raises:
        ValueError: If a latent weight or a scale is not finite: it has no code.
    """
    for name, layer in quantized_layers(model):
        if not all(torch.isfinite(parameter).all() for parameter in layer.parameters()):
            raise ValueError(f"layer '{name}' has weights or scales that are not finite")
    # Handing deepcopy what stands for each layer spares it copying Brevitas' modules.
    frozen: dict[int, Any] = {
        id(layer): IntegerConv2d(layer, *codes_and_scale(layer), input_scale(layer), _range(layer))
        for _, layer in quantized_layers(model)
    }
    return deepcopy(model, frozen).requires_grad_(False)


def _range(layer: Any) -> Tensor | None:
    grid = input_grid(layer)
    if grid is None:
        return None
    return torch.tensor([grid.low, grid.high], dtype=torch.int8, device=layer.weight.device)


def blank_integer_layer(
    conv: nn.Conv2d, scale: Tensor, *, quantized_input: bool = False
) -> IntegerConv2d:
    """Return a frozen convolution of this geometry, to be loaded.

    Args:
        conv: Where the geometry comes from.
        scale: Of the shape that the scale to load has.
        quantized_input: Whether there is an ``input_scale`` to load.
    """
    codes = torch.zeros_like(conv.weight, dtype=torch.int8)
    if not quantized_input:
        return IntegerConv2d(conv, codes, torch.ones_like(scale))
    return IntegerConv2d(
        conv, codes, torch.ones_like(scale), scale.new_ones(()), codes.new_zeros(2)
    )


def integer_layers(model: nn.Module) -> dict[str, IntegerConv2d]:
    """Return the frozen convolutions of a model by full name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, IntegerConv2d)}


def share_differing(model: nn.Module, other: nn.Module) -> float:
    """Return the share of weights, in [0, 1], whose codes differ between two frozen models.

    Raises:
        ValueError: If the two do not have the same layers.
    """
    layers, others = integer_layers(model), integer_layers(other)
    if layers.keys() != others.keys():
        raise ValueError(
            f"models differ in layers: {sorted(layers.keys() ^ others.keys())[:3]} ..."
        )
    total = sum(layer.codes.numel() for layer in layers.values())
    return sum(int((layers[n].codes != others[n].codes).sum()) for n in layers) / total
