"""BatchNorm folded into the convolution before it, as inference computes it, with the codes kept.

In evaluation a BatchNorm is one multiplication and one addition per channel,
``f = gamma / sqrt(variance + eps)`` and ``beta - mean * f``. For a convolution with the weight
``codes * scale`` and the bias ``b`` (0 where it has none)::

    BN(codes * scale * x + b) = codes * (scale * f) * x + (b - mean) * f + beta

so that only the scale, now one per output channel (and negative where gamma is), and the bias
change. Of a float convolution the weight is multiplied instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qatval.quant.integer import IntegerConv2d, integer_layers
from qatval.quant.layers import batchnorm_after


@dataclass(frozen=True)
class InputGrid:
    """How a convolution's input is rounded: to the codes ``low`` to ``high``, times ``scale``."""

    scale: Tensor
    low: int
    high: int


@dataclass(frozen=True)
class FoldedLayer:
    """A quantized convolution after folding.

    Attributes:
        codes: The run's own, int8, ``(out, in / groups, height, width)``.
        scale: With the BatchNorm's factor in it, float32, ``(out,)``.
        input: None where the input stays in float.
    """

    codes: Tensor
    scale: Tensor
    input: InputGrid | None

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with, float32."""
        return self.codes * self.scale.view(-1, 1, 1, 1)


@torch.no_grad()
def folded(model: nn.Module) -> tuple[nn.Module, Mapping[str, FoldedLayer]]:
    """Fold every BatchNorm of a model in evaluation.

    Args:
        model: Float or frozen to integer codes, on the CPU; it is left as it is.

    Returns:
        A copy with float convolutions under the names they had, whose inputs are not rounded any
        more, and by these names what is quantized.
    """
    layers = integer_layers(model)
    quantized = {}
    copy = deepcopy(model).eval().requires_grad_(False)
    for name, conv in list(copy.named_modules()):
        if not isinstance(conv, nn.Conv2d | IntegerConv2d):
            continue
        factor, shift = _normalization(batchnorm_after(copy, name))
        bias = shift if conv.bias is None else conv.bias * factor + shift
        weight = conv.weight * factor.view(-1, 1, 1, 1)
        if name in layers:
            quantized[name] = layer = _folded_layer(layers[name], factor)
            weight = layer.weight
        copy.set_submodule(name, _plain(conv, weight, bias.expand(len(weight)).clone()))
        if batchnorm_after(copy, name) is not None:
            copy.set_submodule(f"{name.rpartition('.')[0]}.bn", nn.Identity())
    return copy, quantized


def _normalization(bn: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of each channel, 1 and 0 where nothing follows."""
    if bn is None:
        return torch.ones(1), torch.zeros(1)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return factor, bn.bias - bn.running_mean * factor


def _folded_layer(layer: IntegerConv2d, factor: Tensor) -> FoldedLayer:
    rounded = None
    if layer.input_scale is not None and layer.input_range is not None:
        low, high = layer.input_range.tolist()
        rounded = InputGrid(layer.input_scale, low, high)
    scale = (layer.scale.flatten() * factor).expand(len(layer.codes)).clone()
    return FoldedLayer(layer.codes, scale, rounded)


def _plain(conv: nn.Conv2d | IntegerConv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    out, channels, *kernel = weight.shape
    plain = nn.Conv2d(
        channels * conv.groups,
        out,
        (kernel[0], kernel[1]),
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
    ).requires_grad_(False)
    plain.weight.copy_(weight)
    plain.bias.copy_(bias)  # type: ignore[union-attr]
    return plain
