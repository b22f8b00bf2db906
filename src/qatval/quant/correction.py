"""Quantization correction (QC): a per-channel scale and shift after every quantized convolution.

Gupta & Asthana, WACV 2024, section 3.2: with ``h = W_q a + b`` each output channel becomes
``gamma * h + beta`` before its BatchNorm. Gamma and beta start at the identity and are all that
trains; the quantized weights, the BatchNorm parameters and its statistics stay as they are.
Afterwards both fold away exactly, so nothing is added to inference. Where inputs are quantized
they stay so, with scales that do not train; gradients pass the rounding straight through.

A float model can be corrected in the same way: that is the control which tells whether QC corrects
quantization, or any model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qatval.core.errors import QatvalError
from qatval.quant.batchnorm import statistics
from qatval.quant.integer import IntegerConv2d, integer_layers
from qatval.quant.layers import batchnorm_after
from qatval.quant.rounding import fake_quantize


class CorrectedConv2d(nn.Module):
    """Frozen convolution, its correction and the BatchNorm behind it, as one convolution.

    With frozen weights ``W`` and bias ``b``, and a BatchNorm of running mean ``mu``, standard
    deviation ``sigma``, weight ``w`` and bias ``c`` (where there is none: the identity),
    ``BN(gamma * (W x + b) + beta)`` is the convolution with the weight ``gamma * r * W`` and the
    bias ``r * (gamma * b + beta - mu) + c``, where ``r = w / sigma``. Gamma and beta are composed
    into them on the channel vectors in each step, so the activations are passed over only by the
    convolution, and by the quantization of its input if there is one.
    """

    weight: Tensor
    bias: Tensor
    ratio: Tensor
    mean: Tensor
    offset: Tensor
    input_scale: Tensor | None

    def __init__(self, layer: IntegerConv2d | nn.Conv2d, bn: nn.BatchNorm2d | None) -> None:
        """Take over a convolution and the trained BatchNorm that follows it, if one does."""
        super().__init__()
        weight = layer.weight.detach()
        none = weight.new_zeros(weight.shape[0])
        self.register_buffer("weight", weight)
        self.register_buffer("bias", none if layer.bias is None else layer.bias.detach().clone())
        if bn is None:
            ratio, mean, offset = none + 1.0, none, none
        else:
            mean, variance = (kept.clone() for kept in statistics(bn))
            ratio, offset = bn.weight.detach() / torch.sqrt(variance + bn.eps), bn.bias.detach()
        self.register_buffer("ratio", ratio)
        self.register_buffer("mean", mean)
        self.register_buffer("offset", offset)
        input_scale, bounds = None, None
        if isinstance(layer, IntegerConv2d):
            input_scale, bounds = layer.input_scale, layer.input_range
        self.register_buffer("input_scale", input_scale)
        self.input_range = () if bounds is None else bounds.tolist()
        self.gamma = nn.Parameter(none + 1.0)
        self.beta = nn.Parameter(none.clone())
        self.geometry: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, correct and normalise, with ``x`` of shape ``(batch, in, height, width)``."""
        if self.input_scale is not None:
            x = fake_quantize(x, self.input_scale, *self.input_range)
        y: Tensor = _Corrected.apply(x, self.gamma, self.beta, self)
        return y


class _Corrected(torch.autograd.Function):
    """The convolution of a `CorrectedConv2d`, without a gradient to its weight.

    Autograd would get gamma's gradient through the gradient to ``gamma * r * W``, as expensive as
    the convolution. It is the sum over ``r * (W x + b)`` times the gradient to the output, and the
    output tells what that is: ``(y - offset - r * (beta - mean)) / gamma``. This stays exact as
    long as gamma stays away from zero; it starts at one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, conv: CorrectedConv2d) -> Tensor:
        still = conv.offset + conv.ratio * (beta - conv.mean)
        scale = gamma * conv.ratio
        weight = conv.weight * scale[:, None, None, None]
        y = F.conv2d(x, weight, still + scale * conv.bias, *conv.geometry)
        ctx.conv, ctx.shape = conv, x.shape
        ctx.layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
        ctx.save_for_backward(weight, gamma, still, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        weight, gamma, still, y = ctx.saved_tensors
        to_input = None
        if ctx.needs_input_grad[0]:
            # Of the input only shape and layout count. torch.nn.grad.conv2d_input hands over one
            # without a layout, and what it returns may lie otherwise than its neighbours.
            like = torch.empty(
                ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout
            )
            stride, padding, dilation, groups = ctx.conv.geometry
            geometry = stride, padding, dilation, False, [0, 0], groups
            to_input, _, _ = torch.ops.aten.convolution_backward(
                grad, like, weight, None, *geometry, [True, False, False]
            )
        # The sums of grad * (y - still) and of grad over each channel, in one pass: they are what
        # a BatchNorm of mean ``still``, variance and weight one would give its weight and bias.
        # The CPU takes the first pair of statistics and CUDA, which wants all arguments, the other.
        ones = torch.ones_like(still)
        _, by_output, total = torch.ops.aten.native_batch_norm_backward(
            grad, y, ones, still, ones, still, ones, False, 0.0, [False, True, True]
        )
        return to_input, by_output / gamma, total * ctx.conv.ratio, None


def attach_corrections(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """Return a trainable copy of a model with corrections after its convolutions.

    The copy starts equal to the model. Its only parameters that require gradients are the gammas
    and betas; weights are constants, quantized ones computed from their codes once.

    Args:
        model: Integer model, or a float one.
        names: Which convolutions to correct; None for all that are quantized.

    Raises:
        ValueError: If there is nothing to correct.
    """
    corrected = deepcopy(model).requires_grad_(False)
    names = integer_layers(corrected).keys() if names is None else names
    if not names:
        raise ValueError("the model has no quantized layer to correct")
    for name in names:
        layer: Any = corrected.get_submodule(name)
        bn = batchnorm_after(corrected, name)
        corrected.set_submodule(name, CorrectedConv2d(layer, bn))
        if bn is not None:
            corrected.set_submodule(name.removesuffix("conv") + "bn", nn.Identity())
    return corrected


def corrections(model: nn.Module) -> Iterator[tuple[str, CorrectedConv2d]]:
    """Yield the corrected convolutions of a model by full name."""
    for name, module in model.named_modules():
        if isinstance(module, CorrectedConv2d):
            yield name, module


@torch.no_grad()
def fold_corrections(corrected: nn.Module, model: nn.Module) -> nn.Module:
    """Return a copy of the model with the learned corrections folded in.

    With a BatchNorm behind the convolution, gamma and beta go into its weight and bias. Without
    one, gamma goes into the per-channel scale and ``gamma * b + beta`` into the bias; a negative
    gamma flips the codes' signs, since a scale is positive. A float weight takes gamma itself.

    Args:
        corrected: What `attach_corrections` returned for ``model``, trained.
        model: The model it was made from.

    Raises:
        QatvalError: If a negative gamma meets the one code that has no opposite in 8 bits.
    """
    folded = deepcopy(model)
    for name, correction in corrections(corrected):
        gamma, beta = correction.gamma.detach(), correction.beta.detach()
        bn = batchnorm_after(folded, name)
        if bn is not None:
            bn.weight.mul_(gamma)
            bn.bias.add_(correction.ratio * (beta + (gamma - 1.0) * correction.mean))
            continue
        layer: Any = folded.get_submodule(name)
        bias = gamma * correction.bias + beta
        per_channel = gamma[:, None, None, None]
        if isinstance(layer, IntegerConv2d):
            if (layer.codes[gamma < 0] == torch.iinfo(torch.int8).min).any():
                raise QatvalError(
                    f"layer '{name}' cannot take its correction: expected codes with an opposite "
                    f"where gamma is negative, got -128 with {float(gamma.min()):.3g}; quantize "
                    "with a narrow range"
                )
            layer.scale = layer.scale * per_channel.abs()
            layer.codes = layer.codes * per_channel.sign().to(torch.int8)
            layer.bias = bias
        else:
            layer.weight.mul_(per_channel)
            layer.bias = nn.Parameter(bias, requires_grad=False)
    return folded
