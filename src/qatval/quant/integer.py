"""The model as it would be deployed: integer weight codes and scales instead of quantizers."""

from __future__ import annotations

from copy import deepcopy

import torch
from brevitas.nn import QuantConv2d
from torch import Tensor, nn
from torch.nn import functional as F

from qatval.quant.layers import codes_and_scale, quantized_layers


class IntegerConv2d(nn.Module):
    """Convolution whose weight is ``codes * scale``.

    Attributes:
        codes: int8, ``(out, in / groups, height, width)``.
        scale: float32, ``()`` or ``(out, 1, 1, 1)``.
        bias: float32, ``(out,)``, or None.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantConv2d) -> None:
        """Freeze a fake-quantized convolution."""
        super().__init__()
        codes, scale = codes_and_scale(layer)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with, float32."""
        return self.codes * self.scale

    @property
    def levels_per_scale(self) -> int:
        """Largest number of distinct codes that share one scale."""
        groups = self.codes.flatten(1) if self.scale.numel() > 1 else self.codes.flatten()[None]
        return max(int(group.unique().numel()) for group in groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, with ``x`` of shape ``(batch, in, height, width)``."""
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def to_integer(model: nn.Module) -> nn.Module:
    """Return a copy of a fake-quantized model with every quantized layer frozen to its codes.

    The copy computes what the original computes, bit for bit.

    Raises:
        ValueError: If a latent weight or a scale is not finite: it has no code.
    """
    frozen = deepcopy(model).requires_grad_(False)
    for name, layer in list(quantized_layers(frozen)):
        parameters = dict(layer.named_parameters())
        if not all(torch.isfinite(parameter).all() for parameter in parameters.values()):
            raise ValueError(f"layer '{name}' has weights that are not finite")
        frozen.set_submodule(name, IntegerConv2d(layer))
    return frozen


def integer_layers(model: nn.Module) -> dict[str, IntegerConv2d]:
    """Return the frozen convolutions of a model by full name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, IntegerConv2d)}
