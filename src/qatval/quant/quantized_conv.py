"""Brevitas' quantized convolution: how it is made, and all that is known of its insides.

Nothing else reaches into Brevitas' proxies and quantizers. (`qatval.quant.gptq` runs one of its
algorithms, on what this module says of a layer.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from brevitas.core.function_wrapper import TensorClamp
from brevitas.inject.enum import ScalingImplType
from brevitas.nn import QuantConv2d
from brevitas.quant import (
    Int8ActPerTensorFloatMinMaxInit,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
)
from torch import Tensor, nn

from qatval.core.quantization import Quantization, ScaleGranularity, Scaling
from qatval.quant.rounding import at_least_float32

_WEIGHT_QUANTIZERS: Mapping[ScaleGranularity, Any] = {
    "per-tensor": Int8WeightPerTensorFloat,
    "per-channel": Int8WeightPerChannelFloat,
}
_SCALING: Mapping[Scaling, Mapping[str, Any]] = {
    "learned": {"weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS},
    # Brevitas would let gradients past the clamp here. Nothing but the largest positive weight of
    # a grid that is not narrow can lie outside of it: one rule for all scales.
    "statistics": {"weight_tensor_clamp_impl": TensorClamp},
}


class _AtLeastFloat32(nn.Module):
    def __init__(self) -> None:  # what is injected may not take arbitrary arguments
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return at_least_float32(x)


class _LearnedInput(Int8ActPerTensorFloatMinMaxInit):  # type: ignore[misc]
    """Signed: SiLU goes down to -0.28, and what an image loses by it is a bit of its 8.

    The scale is a parameter from the start, and not a number until `calibrate_activations` sets
    it, so that a model that was never calibrated answers nothing instead of something wrong.
    """

    input_view_impl = _AtLeastFloat32
    scaling_init = math.nan
    scaling_min_val = 1e-10  # as Brevitas has it for weights


@dataclass(frozen=True)
class Grid:
    """Integer codes of a number of bits, and what a scale is made of.

    A number becomes ``clamp(round(x / s), low, high) * s`` with ``s = max(|value|, least) /
    threshold``, where the value is a parameter or a statistic of the weights.
    """

    bits: int
    low: float
    high: float
    threshold: float
    least: float


def quantized_conv(
    conv: nn.Conv2d, name: str, spec: Quantization, scale: ScaleGranularity
) -> QuantConv2d:
    """Return a convolution with these weights that fake-quantizes them, and its input if asked to.

    Args:
        conv: Float convolution; its tensors are copied.
        name: Its full name in the model, which bits depend on.
        spec: Bits, grid and where scales come from.
        scale: What shares a weight scale.
    """
    activation_bits = spec.activation_bits(name)
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
        weight_quant=_WEIGHT_QUANTIZERS[scale],
        weight_bit_width=spec.weight_bits(name),
        weight_narrow_range=spec.narrow_range,
        **_SCALING[spec.scaling],
        input_quant=None if activation_bits is None else _LearnedInput,
        input_bit_width=activation_bits,
    )
    quantized.to(conv.weight.device).train(conv.training)
    # Not assigned as attributes: Brevitas re-creates a quantizer whose weight is. Copies of tensors
    # keep how they lie in memory.
    for parameter, value in conv.named_parameters():
        quantized.get_parameter(parameter).data = value.detach().clone()
    with torch.no_grad():
        quantized.quant_weight()  # until then a learned scale has no ``state_dict`` key
    return quantized


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantConv2d]]:
    """Yield the fake-quantized convolutions of a model by full name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantConv2d):
            yield name, module


def weight_grid(layer: QuantConv2d) -> Grid:
    """Return the grid of a layer's weights."""
    return _grid(layer.weight_quant.tensor_quant)


def input_grid(layer: QuantConv2d) -> Grid | None:
    """Return the grid of a layer's input, or None if that stays in float."""
    quantizer = _input_quantizer(layer)
    return None if quantizer is None else _grid(quantizer)


def _input_quantizer(layer: QuantConv2d) -> Any | None:
    proxy = layer.input_quant.fused_activation_quant_proxy
    return None if proxy is None or layer.input_quant.disable_quant else proxy.tensor_quant


def _grid(quantizer: Any) -> Grid:
    bits = quantizer.msb_clamp_bit_width_impl()
    scaling = quantizer.scaling_impl
    clamp = getattr(scaling, "stats_scaling_impl", scaling).restrict_clamp_scaling.clamp_ste
    return Grid(
        bits=int(bits),
        low=float(quantizer.int_quant.min_int(bits)),
        high=float(quantizer.int_quant.max_int(bits)),
        threshold=float(quantizer.int_scaling_impl(bits)),
        least=clamp.min_val,
    )


def quantize_nothing(model: nn.Module, below: str = "") -> None:
    """Let the layers of a fake-quantized model, or of a part of it, compute in float from now on.

    Args:
        model: The model.
        below: What the full names of the part's layers begin with.
    """
    for name, layer in quantized_layers(model):
        if name.startswith(below):
            layer.weight_quant.disable_quant = layer.input_quant.disable_quant = True


def learned_scales(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters behind each layer's learned scales, by the layer's full name.

    Those of its weights come before that of its input.
    """
    return {
        name: [*layer.weight_quant.parameters(), *layer.input_quant.parameters()]
        for name, layer in quantized_layers(model)
    }


def scale_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the learned scales of a model, those of weights and those of activations."""
    return {scale for scales in learned_scales(model).values() for scale in scales}


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


@torch.no_grad()
def input_scale(layer: QuantConv2d) -> Tensor | None:
    """Return the scale of a layer's quantized input, ``()``, or None if that stays in float."""
    grid = input_grid(layer)
    if grid is None:
        return None
    (scale,) = input_scales([layer], layer.weight.new_tensor([grid.threshold]))
    return scale.clone()


def quantized_weight(layer: QuantConv2d) -> Tensor:
    """Return a layer's weight as it computes with it, differentiable."""
    quantized: Tensor = layer.quant_weight()
    return getattr(quantized, "value", quantized)


def weight_scale_value(layer: QuantConv2d) -> Tensor:
    """Return a layer's learned scale parameter, or ``max|w|`` where scales are statistics.

    ``()`` or ``(out, 1, 1, 1)``, differentiable.
    """
    scaling = layer.weight_quant.tensor_quant.scaling_impl
    value: Tensor = (
        scaling.value if hasattr(scaling, "value") else scaling.parameter_list_stats(layer.weight)
    )
    return value


def input_scale_value(layer: QuantConv2d) -> Tensor:
    """Return the parameter that the scale of a layer's quantized input comes from, ``()``."""
    quantizer = _input_quantizer(layer)
    assert quantizer is not None
    value: Tensor = quantizer.scaling_impl.value
    return value


def input_scales(layers: Sequence[QuantConv2d], thresholds: Tensor) -> tuple[Tensor, ...]:
    """Return the scales of some layers' quantized inputs, ``()`` each, differentiable.

    Args:
        layers: All with quantized inputs.
        thresholds: Of their grids, ``(layers,)``.
    """
    values = torch.stack([input_scale_value(layer) for layer in layers])
    first: Any = _input_quantizer(layers[0])
    clamped: Tensor = first.scaling_impl.restrict_clamp_scaling(values)
    return (clamped / thresholds).unbind()


def quantized_input(layer: QuantConv2d, x: Tensor) -> Tensor:
    """Return a layer's input as it computes with it."""
    quantized: Tensor = layer.input_quant(x)
    return getattr(quantized, "value", quantized)


def compute_with(
    layers: Sequence[Any],
    weights: Sequence[Tensor],
    quantize_input: Mapping[int, Callable[[Tensor], Tensor]],
) -> None:
    """Make each layer a plain convolution with the weight it is given, until `compute_again`.

    Args:
        layers: The layers.
        weights: A quantized weight for each.
        quantize_input: What quantizes the input, by the number of the layer.
    """

    def forward(layer: Any, weight: Tensor, quantize: Callable[[Tensor], Tensor], x: Tensor) -> Any:
        return layer.inner_forward_impl(quantize(x), weight, layer.bias)

    for number, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
        quantize = quantize_input.get(number, lambda x: x)
        layer.forward = partial(forward, layer, weight, quantize)


def compute_again(layers: Sequence[Any]) -> None:
    """Let layers quantize for themselves again."""
    for layer in layers:
        layer.__dict__.pop("forward", None)
