"""The small model that tests of several quantization modules look at, and all its precisions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from qatval.core.presets import quantization
from qatval.core.quantization import Quantization
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import calibrate_activations, insert_quantizers
from qatval.quant.quantized_conv import scale_parameters
from qatval.train.models import MEMORY_FORMAT

W4A16 = quantization("w4a16")
W4A4 = dataclasses.replace(W4A16, activation_bit_width=4)


LAYERS = ("0.conv", "1.conv", "2")
"""Names of the model's convolutions: three, as Brevitas takes milliseconds for each."""


class Block(nn.Module):
    """A convolution with its BatchNorm, named as Ultralytics names them."""

    def __init__(self, inp: int, out: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, 3, stride, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.bn(self.conv(x)))


def float_model(seed: int = 0, layout: torch.memory_format = MEMORY_FORMAT) -> nn.Sequential:
    """A first layer, one that is depthwise and strided, and an output without BatchNorm."""
    torch.manual_seed(seed)
    model = nn.Sequential(Block(3, 8), Block(8, 8, stride=2, groups=8), nn.Conv2d(8, 5, 1))
    return model.to(memory_format=layout)


def images(seed: int = 0, layout: torch.memory_format = MEMORY_FORMAT) -> Tensor:
    drawn = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=layout)


def quantized_model(
    spec: Quantization = W4A4,
    seed: int = 0,
    shrink: float = 1.0,
    layout: torch.memory_format = MEMORY_FORMAT,
) -> nn.Sequential:
    """A calibrated model; below 1, ``shrink`` pushes weights and inputs out of their grids."""
    model = float_model(seed, layout)
    insert_quantizers(model, spec)
    calibrate_activations(model, [images(seed), images(seed + 1)])
    with torch.no_grad():
        for scale in scale_parameters(model):
            scale.mul_(shrink)
    return model


specs = st.builds(
    Quantization,
    weight_bit_width=st.integers(2, 8),
    narrow_range=st.booleans(),
    scale=st.sampled_from(["per-tensor", "per-channel"]),
    scale_without_batchnorm=st.sampled_from(["per-tensor", "per-channel"]),
    exempt=st.just({}),
    scaling=st.sampled_from(["learned", "statistics"]),
    activation_bit_width=st.none() | st.integers(2, 8),
    boundary=st.just((LAYERS[0], LAYERS[-1])),
    boundary_bit_width=st.none() | st.integers(2, 8),
)
shrinking = st.sampled_from([-1.0, 0.3, 0.9, 1.0, 2.0])
layouts = st.sampled_from([torch.contiguous_format, torch.channels_last])


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of a sum of it to the parameters and the input."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.linspace(-1.0, 1.0, out.numel()).view_as(out)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return out.detach(), {**found, "input": x.grad}


def built_once(build: Callable[[int, bool], LatentWeights]) -> Callable[..., LatentWeights]:
    """Let a function that builds latent weights of some precision build each of them once.

    From then on it gives the same ones, with their tensors as they were at first: building takes
    as long as most tests. What was given before is what is given again, so a test that needs two
    at a time has to build them itself.
    """

    @functools.cache
    def built(bits: int, narrow: bool) -> tuple[LatentWeights, list[tuple[Tensor, Tensor]]]:
        weights = build(bits, narrow)
        tensors = [*weights.weights(), *weights.values()]
        return weights, [(tensor, tensor.detach().clone()) for tensor in tensors]

    @functools.wraps(build)
    @torch.no_grad()
    def give(bits: int = 4, narrow: bool = True) -> LatentWeights:
        weights, kept = built(bits, narrow)
        for tensor, value in kept:
            tensor.copy_(value)
            tensor.grad = None
        return weights

    return give
