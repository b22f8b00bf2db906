"""Quantization correction (QC): a per-channel scale and shift after every quantized convolution.

Gupta & Asthana, WACV 2024, section 3.2: with ``h = W_q a + b`` each output channel becomes
``gamma * h + beta`` before its BatchNorm. Gamma and beta start at the identity and are all that
trains; the quantized weights, the BatchNorm parameters and its statistics stay as they are.
Afterwards both fold away exactly, so nothing is added to inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qatval.quant.integer import IntegerConv2d, integer_layers
from qatval.quant.layers import batchnorm_after


class _Correction(nn.Module):
    """Gamma and beta of one convolution, ``(out,)`` each."""

    def __init__(self, channels: int, like: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, device=like.device))
        self.beta = nn.Parameter(torch.zeros(channels, device=like.device))


class CorrectedBatchNorm2d(_Correction):
    """BatchNorm in evaluation mode applied to ``gamma * h + beta``.

    The two affine maps are one: per channel, with running mean ``mu``, standard deviation
    ``sigma``, weight ``w`` and bias ``b``, ``BN(gamma * h + beta)`` is a BatchNorm of ``h`` with
    weight ``w * gamma`` and bias ``b + w * (beta + (gamma - 1) * mu) / sigma``. Composing them on
    the channel vectors saves two passes over the activations.
    """

    def __init__(self, bn: nn.BatchNorm2d) -> None:
        """Wrap a trained BatchNorm."""
        super().__init__(bn.num_features, bn.weight)
        self.bn = bn

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the weight and bias, ``(channels,)`` each, of the equivalent BatchNorm."""
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        sigma = torch.sqrt(bn.running_var + bn.eps)
        shift = (self.beta + (self.gamma - 1.0) * bn.running_mean) / sigma
        return bn.weight * self.gamma, bn.bias + bn.weight * shift

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, with ``x`` of shape ``(batch, channels, height, width)``."""
        weight, bias = self.folded()
        bn = self.bn
        return F.batch_norm(
            x, bn.running_mean, bn.running_var, weight, bias, training=False, eps=bn.eps
        )


class CorrectedConv2d(_Correction):
    """Convolution followed by ``gamma * h + beta``, for a layer that no BatchNorm follows."""

    def __init__(self, conv: IntegerConv2d) -> None:
        """Wrap a frozen convolution."""
        super().__init__(conv.codes.shape[0], conv.scale)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and correct, with ``x`` of shape ``(batch, in, height, width)``."""
        h: Tensor = self.conv(x)
        return self.gamma[:, None, None] * h + self.beta[:, None, None]


def attach_corrections(model: nn.Module) -> nn.Module:
    """Return a trainable copy of an integer model with a correction after every quantized layer.

    The copy starts equal to the model. Its only parameters that require gradients are the gammas
    and betas; quantized weights are constants, computed from their codes once.

    Raises:
        ValueError: If the model has no quantized layer.
    """
    corrected = deepcopy(model).requires_grad_(False)
    layers = integer_layers(corrected)
    if not layers:
        raise ValueError("the model has no quantized layer to correct")
    for name, layer in layers.items():
        bn = batchnorm_after(corrected, name)
        if bn is None:
            corrected.set_submodule(name, CorrectedConv2d(layer))
        else:
            corrected.set_submodule(name.removesuffix("conv") + "bn", CorrectedBatchNorm2d(bn))
            corrected.set_submodule(name, _constant(layer))
    return corrected


def _constant(layer: IntegerConv2d) -> nn.Conv2d:
    weight = layer.weight
    conv = nn.Conv2d(
        weight.shape[1] * layer.groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        device=weight.device,
    ).requires_grad_(False)
    conv.weight.copy_(weight)
    if conv.bias is not None and layer.bias is not None:
        conv.bias.copy_(layer.bias)
    return conv


def corrections(model: nn.Module) -> Iterator[tuple[str, CorrectedBatchNorm2d | CorrectedConv2d]]:
    """Yield the corrections of a model by the full name of the module that holds them."""
    for name, module in model.named_modules():
        if isinstance(module, CorrectedBatchNorm2d | CorrectedConv2d):
            yield name, module


@torch.no_grad()
def fold_corrections(corrected: nn.Module, model: nn.Module) -> nn.Module:
    """Return a copy of the integer model with the learned corrections folded in.

    With a BatchNorm behind the convolution, gamma and beta go into its weight and bias. Without
    one, gamma goes into the per-channel scale and ``gamma * b + beta`` into the bias; a negative
    gamma flips the codes' signs, since a scale is positive.

    Args:
        corrected: What `attach_corrections` returned for ``model``, trained.
        model: The integer model it was made from.
    """
    folded = deepcopy(model)
    for name, correction in corrections(corrected):
        target = folded.get_submodule(name)
        if isinstance(correction, CorrectedBatchNorm2d):
            assert isinstance(target, nn.BatchNorm2d)
            weight, bias = correction.folded()
            target.weight.copy_(weight)
            target.bias.copy_(bias)
        else:
            assert isinstance(target, IntegerConv2d)
            gamma = correction.gamma.detach()[:, None, None, None]
            target.scale = target.scale * gamma.abs()
            target.codes = target.codes * gamma.sign().to(torch.int8)
            shift = correction.beta.detach().clone()
            if target.bias is not None:
                shift += correction.gamma * target.bias
            target.bias = shift
    return folded
