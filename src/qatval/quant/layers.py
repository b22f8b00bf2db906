"""Insertion of weight and activation quantizers: the one module that knows Brevitas.

Every ``Conv2d`` of a model becomes a ``QuantConv2d``, except the layers that the quantization
preset exempts by name. Nothing is skipped without a word: `coverage` lists each layer with its bits
or the reason why it has none, and raises on a layer that has neither.

Where activations are quantized, it is the inputs of these convolutions that are, each with a scale
of its own. What no convolution reads stays in float: the two matrix products of an attention block,
additions, concatenations, upsampling, pooling and the decoding of boxes.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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

from qatval.core.errors import QatvalError
from qatval.core.quantization import Quantization, ScaleGranularity, Scaling
from qatval.quant.rounding import at_least_float32


class _LearnedPerTensor(Int8WeightPerTensorFloat):  # type: ignore[misc]
    scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS


class _LearnedPerChannel(Int8WeightPerChannelFloat):  # type: ignore[misc]
    scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS


# Brevitas would let gradients past the clamp where scales are statistics. Nothing but the largest
# positive weight of a grid that is not narrow can lie outside of it: one rule for all scales.
class _StatisticsPerTensor(Int8WeightPerTensorFloat):  # type: ignore[misc]
    tensor_clamp_impl = TensorClamp


class _StatisticsPerChannel(Int8WeightPerChannelFloat):  # type: ignore[misc]
    tensor_clamp_impl = TensorClamp


_QUANTIZERS: Mapping[tuple[Scaling, ScaleGranularity], type] = {
    ("learned", "per-tensor"): _LearnedPerTensor,
    ("learned", "per-channel"): _LearnedPerChannel,
    ("statistics", "per-tensor"): _StatisticsPerTensor,
    ("statistics", "per-channel"): _StatisticsPerChannel,
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


@dataclass(frozen=True, order=True)
class Grid:
    """Integer codes and what stands between a scale and the value that it comes from.

    A number becomes ``clamp(round(x / s), low, high) * s`` with ``s = max(|value|, least) /
    threshold``, where the value is a parameter or a statistic of the weights.
    """

    low: float
    high: float
    threshold: float
    least: float


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
        activation_bits: Width of a code of the layer's input, or None if that stays in float.
    """

    name: str
    shape: tuple[int, ...]
    bits: int | None
    scale: ScaleGranularity | None
    reason: str | None
    activation_bits: int | None


def batchnorm_after(model: nn.Module, layer: str) -> nn.BatchNorm2d | None:
    """Return the BatchNorm that directly follows a convolution, or None if none does.

    In Ultralytics' models a convolution and its BatchNorm are always the children ``conv`` and
    ``bn`` of one block.
    """
    parent, _, child = layer.rpartition(".")
    bn = getattr(model.get_submodule(parent), "bn", None) if child == "conv" else None
    return bn if isinstance(bn, nn.BatchNorm2d) else None


def insert_quantizers(model: nn.Module, spec: Quantization) -> list[LayerCoverage]:
    """Replace a model's convolutions by fake-quantized ones, in place.

    Weights and biases are carried over. Each weight scale starts at ``max|w| / largest code``, over
    the layer or over each output channel. A learned one is a parameter from then on: its first
    forward runs here, because until then it has no ``state_dict`` key and an average made of the
    model would leave it out. The scales of activations are parameters too, and not numbers until
    `calibrate_activations` or a ``state_dict`` sets them.

    Args:
        model: Float model.
        spec: Bits, grid, scales and exemptions.

    Returns:
        What became of each layer.

    Raises:
        QatvalError: If a layer with weights can be neither quantized nor is exempt.
    """
    with _uncollected():
        for name in quantizable(model, spec):
            module = model.get_submodule(name)
            assert isinstance(module, nn.Conv2d)
            has_bn = batchnorm_after(model, name) is not None
            scale = spec.scale if has_bn else spec.scale_without_batchnorm
            model.set_submodule(name, _quantized(name, module, spec, scale))
        with torch.no_grad():
            for _, layer in quantized_layers(model):
                layer.quant_weight()
    return coverage(model, spec)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Hold garbage collections back while very many objects are made that stay.

    A fifth of the time that yolo10n's quantizers take would go into walking them again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def quantizable(model: nn.Module, spec: Quantization) -> list[str]:
    """Return the full names of a float model's convolutions that `insert_quantizers` replaces."""
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and spec.exemption(name) is None
    ]


def _quantized(
    name: str, conv: nn.Conv2d, spec: Quantization, scale: ScaleGranularity
) -> QuantConv2d:
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
        weight_quant=_QUANTIZERS[spec.scaling, scale],
        weight_bit_width=spec.weight_bits(name),
        weight_narrow_range=spec.narrow_range,
        input_quant=None if activation_bits is None else _LearnedInput,
        input_bit_width=activation_bits,
    )
    quantized.to(conv.weight.device).train(conv.training)
    # Not assigned as attributes: Brevitas re-creates a quantizer whose weight is. Copies of tensors
    # keep how they lie in memory.
    for parameter, value in conv.named_parameters():
        quantized.get_parameter(parameter).data = value.detach().clone()
    return quantized


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantConv2d]]:
    """Yield the fake-quantized convolutions of a model by full name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantConv2d):
            yield name, module


def input_quantizer(layer: QuantConv2d) -> Any | None:
    """Return what quantizes a layer's input, or None if that stays in float."""
    proxy = layer.input_quant.fused_activation_quant_proxy
    return None if proxy is None else proxy.tensor_quant


def grid_of(quantizer: Any) -> Grid:
    """Return the grid of one of Brevitas' quantizers of weights or of inputs."""
    bits = quantizer.msb_clamp_bit_width_impl()
    scaling = quantizer.scaling_impl
    clamp = getattr(scaling, "stats_scaling_impl", scaling).restrict_clamp_scaling.clamp_ste
    return Grid(
        low=float(quantizer.int_quant.min_int(bits)),
        high=float(quantizer.int_quant.max_int(bits)),
        threshold=float(quantizer.int_scaling_impl(bits)),
        least=clamp.min_val,
    )


@torch.no_grad()
def calibrate_activations(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set where the learned scales of activations start, in place.

    LSQ's start (Esser et al., ICLR 2020, section 2.1): ``2 * mean|x| / sqrt(largest code)``. The
    mean is that over all batches, with the model in evaluation mode and everything in float, so
    that a scale depends neither on the bits of the weights nor on the order of the layers. (Chosen
    here; LSQ takes the first batch of the training, Gupta & Asthana do not say.)

    Does nothing where no activation is quantized.

    Args:
        model: Fake-quantized model.
        batches: Inputs of the model, on its device: images ``(batch, 3, height, width)``.

    Raises:
        QatvalError: If a layer saw no input, or none that a scale can start from.
    """
    layers = {n: layer for n, layer in quantized_layers(model) if input_quantizer(layer)}
    if not layers:
        return
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def observe(name: str, x: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + x.abs().sum(dtype=torch.float64)
        counts[name] += x.numel()

    with contextlib.ExitStack() as temporarily:
        temporarily.enter_context(_in_float(model))
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(
                lambda _, args, name=name: observe(name, args[0])
            )
            temporarily.callback(hook.remove)
        for batch in batches:
            model(batch)
    for name, layer in layers.items():
        mean = float(sums[name]) / counts[name] if name in sums else 0.0
        if not 0.0 < mean < math.inf:
            raise QatvalError(
                f"cannot calibrate the input of layer '{name}': expected numbers, not all of them "
                f"zero, from the calibration images, got a mean magnitude of {mean}"
            )
        quantizer = input_quantizer(layer)
        assert quantizer is not None
        grid = grid_of(quantizer)
        quantizer.scaling_impl.value.fill_(2.0 * mean / math.sqrt(grid.high) * grid.threshold)


@contextlib.contextmanager
def _in_float(model: nn.Module) -> Iterator[None]:
    """Let a fake-quantized model compute without quantizers, in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    proxies = [
        p for _, layer in quantized_layers(model) for p in (layer.weight_quant, layer.input_quant)
    ]
    model.eval()
    for proxy in proxies:
        proxy.disable_quant = True
    try:
        yield
    finally:
        for proxy in proxies:
            proxy.disable_quant = False
        for module, training in modes:
            module.training = training


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
            bits = _bits(module.weight_quant.tensor_quant)
            _, scales = codes_and_scale(module)
            scale: ScaleGranularity = "per-channel" if scales.dim() else "per-tensor"
            activations = input_quantizer(module)
            activation_bits = None if activations is None else _bits(activations)
            layers.append(LayerCoverage(name, shape, bits, scale, None, activation_bits))
        elif reason := spec.exemption(name):
            layers.append(LayerCoverage(name, shape, None, None, reason, None))
        else:
            raise QatvalError(
                f"layer '{name}' ({type(module).__name__}) is neither quantized nor on the "
                f"exemption list of '{spec.mode}': name it there with a reason, or extend the "
                "insertion"
            )
    return layers


def _bits(quantizer: Any) -> int:
    return int(quantizer.msb_clamp_bit_width_impl())


def scale_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the learned scales of a model, those of weights and those of activations."""
    return {
        parameter
        for _, layer in quantized_layers(model)
        for proxy in (layer.weight_quant, layer.input_quant)
        for parameter in proxy.parameters()
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


@torch.no_grad()
def input_scale(layer: QuantConv2d) -> Tensor | None:
    """Return the scale of a layer's quantized input, ``()``, or None if that stays in float."""
    quantizer = input_quantizer(layer)
    if quantizer is None:
        return None
    threshold = quantizer.int_scaling_impl(quantizer.msb_clamp_bit_width_impl())
    scale: Tensor = quantizer.scaling_impl(layer.weight, threshold)
    return scale.detach().clone()
