"""What follows the weights goes on from its state as if it had never been put away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as safetensors
from tests.unit.quant.conftest import W4A16, built_once
from torch import Tensor, nn

from qatval.core.errors import UsageError
from qatval.quant.dampening import Dampening
from qatval.quant.freezing import Freezing
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import insert_quantizers
from qatval.quant.oscillation import OscillationTracker
from qatval.quant.stabilizing import Stabilizer

SIZE = 8
codes = st.lists(st.integers(-7, 7), min_size=SIZE, max_size=SIZE)


@built_once
def latent_weights(bits: int, narrow: bool) -> LatentWeights:
    """One layer with one scale, then one with a scale per channel; 2 and 6 weights."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 2, 1))
    model.add_module("bn", nn.BatchNorm2d(2))
    model.add_module("head", nn.Conv2d(2, 3, 1))
    insert_quantizers(model, W4A16)
    return LatentWeights(model)


@torch.no_grad()
def place(weights: LatentWeights, wanted: list[int]) -> None:
    parts = torch.split(torch.tensor(wanted) + 0.2, list(weights.sizes))
    for weight, scale, part in zip(weights.weights(), weights.scales(), parts, strict=True):
        weight.copy_(part.view_as(weight) * scale)


@torch.no_grad()
def stretch(weights: LatentWeights, factor: float) -> None:
    for value in weights.values():
        value.mul_(factor)


def through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return safetensors.load(safetensors.save(state))


@given(st.lists(codes, min_size=1, max_size=12), st.data())
def test_a_tracker_goes_on(steps: list[list[int]], data: st.DataObject) -> None:
    weights = latent_weights()
    whole = OscillationTracker(weights, momentum=0.1)
    away = data.draw(st.integers(0, len(steps)), "put away")
    followed = whole
    for number, wanted in enumerate(steps):
        if number == away:
            # Its start is another one: the scales have changed by now.
            stretch(weights, 1.5)
            followed = OscillationTracker(weights, momentum=0.1)
            followed.restore(through_a_file(whole.state()))
        observed = torch.tensor(wanted, dtype=torch.int8)
        for tracker in {whole, followed}:
            tracker.observe(observed)
            if number % 2:
                tracker.end_epoch(number)
    assert followed.result() == whole.result()
    assert torch.equal(followed.frequency, whole.frequency)


def freezing(weights: LatentWeights) -> Freezing:
    return Freezing(weights, 0.3, 0.3, 0.1, start=0.0)


def dampening(weights: LatentWeights) -> Dampening:
    return Dampening(weights, weight=1e-2)


@pytest.mark.parametrize("make", [freezing, dampening])
@given(steps=st.lists(codes, min_size=2, max_size=12), data=st.data())
@settings(max_examples=30)
def test_a_stabilizer_goes_on(
    make: Callable[[LatentWeights], Stabilizer], steps: list[list[int]], data: st.DataObject
) -> None:
    away = data.draw(st.integers(0, len(steps) - 1), "put away")
    ends = []
    for interrupted in (False, True):
        weights = latent_weights()
        followed = make(weights)
        for number, wanted in enumerate(steps):
            if interrupted and number == away:
                state = through_a_file(followed.state())
                followed = make(weights)
                followed.restore(state)
            place(weights, wanted)
            for weight in weights.weights():
                weight.grad = torch.ones_like(weight)
            followed.before_step(number / len(steps), 16)
            followed.after_step((number + 1) / len(steps))
        found = [t.detach().clone() for t in weights.weights()]
        found += [w.grad.clone() for w in weights.weights() if w.grad is not None]
        ends.append((found, followed.report()))
    (one, reported), (other, again) = ends
    assert reported == again
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Counting(Stabilizer):
    """What a package of someone else's might keep."""

    def __init__(self, weights: LatentWeights, name: str = "own") -> None:
        super().__init__(weights)
        self.name, self.count, self.share, self.on = name, 0, 0.5, False
        self.velocity: Tensor | None = None
        self.seen = torch.zeros(SIZE, dtype=torch.int32)

    def after_step(self, progress: float) -> None:
        self.count += 1
        self.share, self.on, self.velocity = progress / 3, True, torch.full((2,), progress)
        self.seen += 1


def test_tensors_and_numbers_are_kept_of_themselves() -> None:
    weights = latent_weights()
    one, other = Counting(weights), Counting(weights)
    for _ in range(3):
        one.after_step(0.7)
    other.restore(through_a_file(one.state()))
    assert (other.count, other.share, other.on) == (3, 0.7 / 3, True)
    assert type(other.count) is int
    assert type(other.on) is bool
    assert other.velocity is not None
    assert torch.equal(other.velocity, torch.full((2,), 0.7))
    assert torch.equal(other.seen, one.seen)


def test_what_cannot_be_kept_is_said() -> None:
    kept = Counting(latent_weights())
    kept.momenta = [torch.zeros(2)]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"Counting keeps list 'momenta'.*overrides state\(\)"):
        kept.state()
