"""Insertion of 4-bit weight quantizers: the one module that knows Brevitas.

Every ``Conv2d`` of a model becomes a ``QuantConv2d`` with a learned scale, except the layers that
the quantization preset exempts by name. Nothing is skipped without a word: `coverage` lists each
layer with its bits or the reason why it has none, and raises on a layer that has neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from brevitas.inject.enum import ScalingImplType
from brevitas.nn import QuantConv2d
from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat
from torch import Tensor, nn

from qatval.config import Quantization, ScaleGranularity
from qatval.errors import QatvalError


class _LearnedPerTensor(Int8WeightPerTensorFloat):  # type: ignore[misc]
    scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS


class _LearnedPerChannel(Int8WeightPerChannelFloat):  # type: ignore[misc]
    scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS


_QUANTIZERS: Mapping[ScaleGranularity, type] = {
    "per-tensor": _LearnedPerTensor,
    "per-channel": _LearnedPerChannel,
}

# Layers with weights to multiply by: each must be quantized or exempt.
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class LayerCoverage:
    """What became of one layer.

    Attributes:
        name: Full name in the model.
        shape: Shape of the weight, ``(out, in / groups, height, width)``.
        bits: Width of a weight code, or None if the layer stays in float.
        scale: Granularity of the scale, or None if the layer stays in float.
        reason: Why the layer stays in float, or None if it does not.
    """

    name: str
    shape: tuple[int, ...]
    bits: int | None
    scale: ScaleGranularity | None
    reason: str | None


def batchnorm_after(model: nn.Module, layer: str) -> nn.BatchNorm2d | None:
    """Return the BatchNorm that directly follows a convolution, or None if none does.

    In Ultralytics' models a convolution and its BatchNorm are always the children ``conv`` and
    ``bn`` of one block.
    """
    parent, _, child = layer.rpartition(".")
    bn = getattr(model.get_submodule(parent), "bn", None) if child == "conv" else None
    return bn if isinstance(bn, nn.BatchNorm2d) else None


def insert_quantizers(model: nn.Module, spec: Quantization) -> None:
    """Replace a model's convolutions by 4-bit fake-quantized ones, in place.

    Weights and biases are carried over. Each scale starts at ``max|w| / largest code``, over the
    layer or over each output channel, and is a parameter from then on: its first forward runs
    here, because until then it has no ``state_dict`` key and an average made of the model would
    leave it out.

    Args:
        model: Float model.
        spec: Bits, grid, granularity and exemptions.

    Raises:
        QatvalError: If a layer with weights can be neither quantized nor is exempt.
    """
    convolutions = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and spec.exemption(name) is None
    ]
    for name in convolutions:
        module = model.get_submodule(name)
        assert isinstance(module, nn.Conv2d)
        has_bn = batchnorm_after(model, name) is not None
        model.set_submodule(
            name, _quantized(module, spec, spec.scale if has_bn else spec.scale_without_batchnorm)
        )
    with torch.no_grad():
        for _, layer in quantized_layers(model):
            layer.quant_weight()
    coverage(model, spec)


def _quantized(conv: nn.Conv2d, spec: Quantization, scale: ScaleGranularity) -> QuantConv2d:
    quantized = QuantConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        weight_quant=_QUANTIZERS[scale],
        weight_bit_width=spec.weight_bit_width,
        weight_narrow_range=spec.narrow_range,
    )
    quantized.to(conv.weight.device).train(conv.training)
    # Copying, not assigning: Brevitas re-creates a quantizer whose weight attribute is assigned.
    with torch.no_grad():
        for name, value in conv.named_parameters():
            quantized.get_parameter(name).copy_(value)
    return quantized


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantConv2d]]:
    """Yield the fake-quantized convolutions of a model by full name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantConv2d):
            yield name, module


def coverage(model: nn.Module, spec: Quantization) -> list[LayerCoverage]:
    """List every layer with weights: its bits, or why it is exempt.

    Raises:
        QatvalError: If a layer is neither quantized nor exempt.
    """
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, _WEIGHTED):
            continue
        shape = tuple(module.weight.shape)
        if isinstance(module, QuantConv2d):
            quantizer = module.weight_quant.tensor_quant
            bits = int(quantizer.msb_clamp_bit_width_impl())
            scales = quantizer.scaling_impl.value.dim()
            scale: ScaleGranularity = "per-channel" if scales else "per-tensor"
            layers.append(LayerCoverage(name, shape, bits, scale, None))
        elif reason := spec.exemption(name):
            layers.append(LayerCoverage(name, shape, None, None, reason))
        else:
            raise QatvalError(
                f"layer '{name}' ({type(module).__name__}) is neither quantized nor on the "
                f"exemption list of '{spec.mode}': name it there with a reason, or extend the "
                "insertion"
            )
    return layers


def scale_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the learned scales of a model."""
    return {
        parameter
        for _, layer in quantized_layers(model)
        for parameter in layer.weight_quant.parameters()
    }


@torch.no_grad()
def codes_and_scale(layer: QuantConv2d) -> tuple[Tensor, Tensor]:
    """Return a layer's integer codes and their scale.

    Returns:
        codes: int8, the shape of the weight.
        scale: float32, ``()`` or ``(out, 1, 1, 1)``; ``codes * scale`` is the weight that the
            layer computes with, bit for bit.
    """
    quantized = layer.quant_weight()
    return quantized.int().to(torch.int8), quantized.scale.detach().clone()
