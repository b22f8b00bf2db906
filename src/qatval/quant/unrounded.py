"""Layers of a delivered model in float: what the rounding of each of them costs.

A delivered layer computes with ``s' q``. Its codes came from a latent weight ``w`` at that weight's
scale ``s``: ``q = clamp(round(w / s), low, high)``. What is done once the codes are fixed changes
what they are multiplied by and what follows them. QC's fold leaves ``s' = |gamma| s`` and a bias
with beta in it, and flips the codes of a channel whose gamma is negative; where a BatchNorm
follows, gamma and beta are in that. Other statistics are in the BatchNorm alone.

In float a layer is the same with ``w / s`` in the place of ``q``, neither rounded nor clamped::

    W = w * sign * s' / s

with the delivered bias, the delivered BatchNorm behind it, and its input as it comes. ``sign`` is
that of a channel's correlation of codes with latent weights, -1 where QC has flipped them. (A
channel whose codes are all 0 has none and counts as not flipped.) GPTQ chooses other codes for the
same ``w`` and ``s``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from qatval.quant.batchnorm import tracking
from qatval.quant.integer import IntegerConv2d, integer_layers
from qatval.quant.quantized_conv import codes_and_scale, quantized_layers


@torch.no_grad()
def float_layers(delivered: nn.Module, latent: nn.Module) -> dict[str, nn.Conv2d]:
    """Return each quantized layer of a model as a float convolution, by full name.

    Args:
        delivered: Integer model.
        latent: The fake-quantized model that its codes were made of, on the same device.

    Raises:
        ValueError: If the two do not have the same layers.
    """
    layers, weights = integer_layers(delivered), dict(quantized_layers(latent))
    if layers.keys() != weights.keys():
        raise ValueError(
            f"models differ in layers: {sorted(layers.keys() ^ weights.keys())[:3]} ..."
        )
    found = {}
    for name, layer in layers.items():
        weight = weights[name].weight.detach()
        _, scale = codes_and_scale(weights[name])
        flipped = (layer.codes * weight).sum((1, 2, 3), keepdim=True) < 0
        ratio = torch.where(flipped, -1.0, 1.0) * (layer.scale / scale)
        found[name] = _convolution(layer, weight * ratio)
    return found


def _convolution(layer: IntegerConv2d, weight: Tensor) -> nn.Conv2d:
    """Return a float convolution of a layer's geometry and bias."""
    out, inputs, height, width = weight.shape
    of: Any = layer
    # On no device: drawing weights first would take time, and random numbers from others.
    conv = nn.Conv2d(
        inputs * of.groups,
        out,
        (height, width),
        of.stride,
        of.padding,
        of.dilation,
        of.groups,
        bias=False,
        device="meta",
    )
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias, requires_grad=False)
    return conv


def with_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of a model with other layers in some places.

    All other tensors are shared with the model, but for BatchNorm statistics.
    """
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for _, layer in tracking(model):
        for statistic in layer.buffers():
            del shared[id(statistic)]
    stand_ins = {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    return deepcopy(model, {**shared, **stand_ins})


def answering_layers(model: nn.Module, images: Tensor) -> list[str]:
    """Return the quantized layers that a detector's answer depends on, by full name, in order.

    A head that is there to learn by answers nothing.

    Args:
        model: Integer model; it is left as it is.
        images: Any, ``(batch, 3, height, width)``, on the model's device.
    """
    probe = deepcopy(model).eval()
    layers = integer_layers(probe)
    scales = [layer.scale.requires_grad_() for layer in layers.values()]
    with torch.enable_grad():
        answer: Tensor = probe(images)[0]
        gradients = torch.autograd.grad(answer.sum(), scales, allow_unused=True)
    return [name for name, found in zip(layers, gradients, strict=True) if found is not None]
