"""Dampening's gradient is that of the published penalty; its weight follows a cosine."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import W4A16, built_once
from torch import nn

from qatval.quant.dampening import Dampening
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import insert_quantizers

SPEC = dataclasses.replace(W4A16, scale="per-tensor")


@built_once
def latent_weights(bits: int, narrow: bool) -> LatentWeights:
    """One layer with a scale, one with a scale per channel."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 4, 3))
    model.add_module("bn", nn.BatchNorm2d(4))
    model.add_module("head", nn.Conv2d(4, 5, 1))
    insert_quantizers(model, dataclasses.replace(SPEC, weight_bit_width=bits, narrow_range=narrow))
    weights = LatentWeights(model)
    assert weights.counts == [1, 5]
    return weights


@torch.no_grad()
def move(weights: LatentWeights, seed: int, shrink: float) -> None:
    """Draw other weights; the further below 1 ``shrink`` is, the more of them are clipped."""
    generator = torch.Generator().manual_seed(seed)
    for weight, value in zip(weights.weights(), weights.values(), strict=True):
        weight.uniform_(-1.0, 1.0, generator=generator).mul_(value.abs().max())
        value.mul_(shrink)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    narrow=st.booleans(),
    shrink=st.sampled_from([0.3, 0.8, 1.0, 1.7]),
    progress=st.floats(0.0, 1.0),
    images=st.integers(1, 64),
)
def test_the_gradient_is_that_of_the_published_penalty(
    seed: int, bits: int, narrow: bool, shrink: float, progress: float, images: int
) -> None:
    """Autograd of Nagel et al.'s equation, weights and scales alike, added to what is there."""
    weights = latent_weights(bits, narrow)
    move(weights, seed, shrink)
    dampening = Dampening(weights, weight=0.01)
    penalty = torch.zeros(())
    for layer, value, grid in zip(weights.layers, weights.values(), weights.grids, strict=True):
        scale = value.abs() / grid.threshold
        quantized = layer.quant_weight().value.detach()
        clipped = layer.weight.max(scale * grid.low).min(scale * grid.high)
        penalty = penalty + (quantized - clipped).square().sum()
    parameters = [*weights.weights(), *weights.values()]
    expected = torch.autograd.grad(images * dampening.strength(progress) * penalty, parameters)
    upstream = [torch.randn_like(parameter) for parameter in parameters]
    for parameter, grad in zip(parameters, upstream, strict=True):
        parameter.grad = grad.clone()

    dampening.before_step(progress, images)

    for parameter, before, added in zip(parameters, upstream, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, before + added, rtol=1e-5, atol=1e-6)


def test_the_weight_follows_a_cosine_from_zero() -> None:
    dampening = Dampening(latent_weights(), weight=0.01)
    assert dampening.strength(0.0) == 0.0
    assert dampening.strength(1 / 3) == pytest.approx(0.0025)
    assert dampening.strength(0.5) == pytest.approx(0.005)
    assert dampening.strength(1.0) == 0.01


def test_a_weight_outside_the_step_is_left_alone() -> None:
    weights = latent_weights()
    first, second = weights.weights()
    second.grad = torch.zeros_like(second)
    Dampening(weights, weight=0.01).before_step(0.5, 16)
    assert first.grad is None
    assert second.grad.abs().sum() > 0
