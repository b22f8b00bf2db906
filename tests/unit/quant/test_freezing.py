"""Iterative freezing against algorithm 1 of Nagel et al., one weight at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import W4A16, built_once
from torch import nn

from qatval.quant.freezing import Freezing
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import insert_quantizers

SIZE = 8


@built_once
def latent_weights(bits: int, narrow: bool) -> LatentWeights:
    """One layer with one scale, then one with a scale per channel; 2 and 6 weights."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 2, 1))
    model.add_module("bn", nn.BatchNorm2d(2))
    model.add_module("head", nn.Conv2d(2, 3, 1))
    spec = dataclasses.replace(
        W4A16, weight_bit_width=bits, narrow_range=narrow, scale="per-tensor"
    )
    insert_quantizers(model, spec)
    weights = LatentWeights(model)
    assert weights.counts == [1, 3]
    return weights


@torch.no_grad()
def move(weights: LatentWeights, codes: Sequence[int], within: float = 0.3) -> None:
    """Put every latent weight somewhere in the step of its code, as an optimizer might."""
    placed = torch.tensor([code + within for code in codes])
    parts = torch.split(placed, list(weights.sizes))
    for weight, scale, part in zip(weights.weights(), weights.scales(), parts, strict=True):
        weight.copy_(part.view_as(weight) * scale)


@torch.no_grad()
def ratios(weights: LatentWeights) -> list[float]:
    """Return the latent weights in steps."""
    found = []
    for weight, scale in zip(weights.weights(), weights.scales(), strict=True):
        found += (weight / scale).flatten().tolist()
    return found


@dataclasses.dataclass
class OneWeight:
    """Algorithm 1, one weight at a time; the threshold is given."""

    code: int
    average: float
    last_change: int = 0
    frequency: float = 0.0
    frozen: int | None = None

    def step(self, code: int, momentum: float, threshold: float) -> None:
        code = code if self.frozen is None else self.frozen
        change = (code > self.code) - (code < self.code)
        oscillates = change != 0 and change == -self.last_change
        self.last_change = change or self.last_change
        self.frequency = momentum * oscillates + (1 - momentum) * self.frequency
        self.average = momentum * code + (1 - momentum) * self.average
        self.code = code
        if self.frozen is None:
            # What float32 may decide otherwise is no example.
            assume(abs(self.frequency - threshold) > 1e-5)
            if self.frequency > threshold:
                assume(abs(self.average % 1 - 0.5) > 1e-4)
                self.frozen = round(self.average)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.lists(st.integers(-2, 2) | st.integers(-7, 7), min_size=SIZE, max_size=SIZE),
        min_size=4,
        max_size=30,
    ),
    momentum=st.sampled_from([0.07, 0.3]),
    thresholds=st.sampled_from([(0.31, 0.043), (0.043, 0.043), (0.1, 0.3)]),
    start=st.sampled_from([0.0, 0.25, 0.6]),
)
def test_weights_freeze_as_in_algorithm_1(
    steps: list[list[int]], momentum: float, thresholds: tuple[float, float], start: float
) -> None:
    weights = latent_weights()
    freezing = Freezing(weights, momentum, *thresholds, start)
    expected = [OneWeight(code, code) for code in weights.flat_codes().tolist()]
    for number, codes in enumerate(steps, start=1):
        progress = number / len(steps)
        move(weights, codes)
        freezing.after_step(progress)
        for weight, code in zip(expected, codes, strict=True):
            weight.step(code, momentum, freezing.threshold(progress))
        for weight, code, ratio in zip(expected, codes, ratios(weights), strict=True):
            wanted = code + 0.3 if weight.frozen is None else weight.frozen
            assert ratio == pytest.approx(wanted, abs=1e-4)
    assert freezing.report() == {"frozen": sum(w.frozen is not None for w in expected) / SIZE}


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    factors=st.lists(st.floats(0.2, 5.0), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_a_frozen_code_is_kept_exactly_whatever_becomes_of_its_scale(
    bits: int, factors: list[float], seed: int
) -> None:
    weights = latent_weights(bits)
    high = 2 ** (bits - 1) - 1
    torch.manual_seed(seed)
    freezing = Freezing(weights, 0.3, 0.1, 0.1, 0.0)
    codes = torch.randint(-high, high, (SIZE,))
    for step in range(4):
        move(weights, (codes + step % 2).tolist())
        freezing.after_step(0.5)
    assert freezing.report() == {"frozen": 1.0}
    kept = weights.flat_codes()
    for factor in factors:
        with torch.no_grad():
            for weight, value in zip(weights.weights(), weights.values(), strict=True):
                value.mul_(factor)
                weight.add_(torch.randn_like(weight))
        freezing.after_step(0.5)
        assert torch.equal(weights.flat_codes(), kept)
        assert ratios(weights) == pytest.approx(kept.tolist(), rel=1e-6)
        for layer, part in zip(weights.layers, torch.split(kept, list(weights.sizes)), strict=True):
            assert torch.equal(layer.quant_weight().int().flatten().to(torch.int8), part)


def test_frozen_codes_are_kept_where_scales_are_statistics() -> None:
    """The optimizer moves the largest weight, and with it the scale of all others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1))
    spec = dataclasses.replace(W4A16, scaling="statistics")
    insert_quantizers(model, spec)
    weights = LatentWeights(model)
    freezing = Freezing(weights, 0.3, 0.1, 0.1, 0.0)
    for turn in range(4):
        move(weights, [7, 3 + turn % 2, 7, -3, 2 + turn % 2, 7, -7, 1], within=0.0)
        freezing.after_step(0.5)
    assert freezing.report() == {"frozen": 2 / SIZE}
    kept = weights.flat_codes()[[1, 4]]
    (weight,) = weights.weights()
    scales = weights.scales()[0].clone()
    for _ in range(20):
        with torch.no_grad():
            weight.mul_(1.0 + 0.03 * torch.rand_like(weight))
        freezing.after_step(0.5)
        assert torch.equal(weights.flat_codes()[[1, 4]], kept)
    assert torch.all(weights.scales()[0] > 1.2 * scales)


def test_the_threshold_is_off_and_then_follows_a_cosine() -> None:
    freezing = Freezing(latent_weights(), 0.01, 0.04, 0.01, start=0.25)
    assert freezing.threshold(0.0) == freezing.threshold(0.2499) == math.inf
    assert freezing.threshold(0.25) == 0.04
    assert freezing.threshold(0.5) == pytest.approx(0.01 + 0.03 * 0.75)
    assert freezing.threshold(0.625) == pytest.approx(0.025)
    assert freezing.threshold(1.0) == 0.01


def test_only_frozen_weights_lose_their_gradient() -> None:
    weights = latent_weights()
    freezing = Freezing(weights, 0.3, 0.1, 0.1, 0.0)
    still = [3, -2, 1, 0, 5, -4, 2, 6]
    for turn in range(4):
        move(weights, [still[0] + turn % 2, *still[1:7], still[7] - turn % 2])
        freezing.after_step(0.5)
    for weight in weights.weights():
        weight.grad = torch.ones_like(weight)
    freezing.before_step(0.5, images=16)
    grads = [weight.grad for weight in weights.weights()]
    flat = torch.cat([grad.flatten() for grad in grads if grad is not None])
    assert flat.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    assert freezing.report() == {"frozen": 2 / SIZE}
