"""Oscillation as Nagel et al. define it: against one weight at a time, and on their toy problem."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, astuple
from tests.unit.quant.conftest import W4A16, built_once
from torch import Tensor, nn

from qatval.quant.dampening import Dampening
from qatval.quant.freezing import Freezing
from qatval.quant.fused import fuse_quantization
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import insert_quantizers
from qatval.quant.oscillation import (
    EpochOscillation,
    LayerOscillation,
    Oscillation,
    OscillationTracker,
    threshold_distances,
)
from qatval.quant.stabilizing import Stabilizer

SPEC = dataclasses.replace(W4A16, scale_without_batchnorm="per-tensor")
SIZES = (2, 6)


@built_once
def latent_weights(bits: int, narrow: bool) -> LatentWeights:
    """Two layers, of 2 and 6 weights, each with one scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1))
    spec = dataclasses.replace(SPEC, weight_bit_width=bits, narrow_range=narrow)
    insert_quantizers(model, spec)
    return LatentWeights(model)


def int8(*codes: int) -> Tensor:
    return torch.tensor(codes, dtype=torch.int8)


@dataclasses.dataclass
class OneWeight:
    """The definition, one weight at a time."""

    code: int
    momentum: float
    last_change: int = 0
    frequency: float = 0.0
    flips: int = 0
    reversals: int = 0

    def observe(self, code: int) -> None:
        oscillates = 0
        if code != self.code:
            change = 1 if code > self.code else -1
            oscillates = int(self.last_change == -change)
            self.last_change = change
            self.flips += 1
        self.reversals += oscillates
        self.frequency = self.momentum * oscillates + (1 - self.momentum) * self.frequency
        self.code = code


# -- the tracker against the definition -----------------------------------------------------------

any_codes = st.lists(st.integers(-128, 127), min_size=sum(SIZES), max_size=sum(SIZES))
near_codes = st.lists(st.integers(-1, 1), min_size=sum(SIZES), max_size=sum(SIZES))


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.lists(st.lists(any_codes | near_codes, min_size=1, max_size=12), max_size=4),
    momentum=st.sampled_from([0.001, 0.01, 0.3]),
    threshold=st.sampled_from([0.00431, 0.2003]),
)
def test_every_weight_follows_the_definition(
    epochs: list[list[list[int]]], momentum: float, threshold: float
) -> None:
    weights = latent_weights()
    tracker = OscillationTracker(weights, momentum, threshold)
    expected = [OneWeight(code, momentum) for code in weights.flat_codes().tolist()]
    for number, steps in enumerate(epochs, start=1):
        flips, reversals = (sum(getattr(w, n) for w in expected) for n in ("flips", "reversals"))
        for codes in steps:
            tracker.observe(int8(*codes))
            for weight, code in zip(expected, codes, strict=True):
                weight.observe(code)
        record = tracker.end_epoch(number)
        chances = len(steps) * len(expected)
        assert record.epoch == number
        assert record.change_rate == (sum(w.flips for w in expected) - flips) / chances
        assert record.reversal_rate == (sum(w.reversals for w in expected) - reversals) / chances
        oscillating = sum(w.frequency > threshold for w in expected) / len(expected)
        assert record.oscillating == pytest.approx(oscillating)

    found = tracker.result()
    assert found.steps == sum(map(len, epochs))
    assert [epoch.epoch for epoch in found.epochs] == [n + 1 for n in range(len(epochs))]
    assert tracker.frequency.tolist() == pytest.approx([w.frequency for w in expected], abs=1e-6)
    assert found.oscillating == pytest.approx(
        sum(w.frequency > threshold for w in expected) / len(expected)
    )
    for layer, name, part in zip(
        found.layers, weights.names, (expected[:2], expected[2:]), strict=True
    ):
        assert (layer.name, layer.weights) == (name, len(part))
        assert layer.flips == sum(w.flips for w in part) / len(part)
        assert layer.reversals == sum(w.reversals for w in part) / len(part)
        assert layer.oscillating == sum(w.frequency > threshold for w in part) / len(part)


def test_codes_are_copied() -> None:
    """The fused quantizer fills one tensor over and over."""
    weights = latent_weights()
    tracker = OscillationTracker(weights)
    codes = weights.flat_codes()
    for change in (1, -1, 1):
        codes[0] += change
        tracker.observe(codes)
    assert tracker.result().layers[0].reversals == 2 / SIZES[0]


def test_one_reversal_marks_a_weight_for_69_steps() -> None:
    weights = latent_weights()
    still = weights.flat_codes()
    moved = still.clone()
    moved[0] -= 1
    tracker = OscillationTracker(weights)
    tracker.observe(moved)
    tracker.observe(still)
    marked = 0
    while tracker.result().oscillating > 0:
        marked += 1
        tracker.observe(still)
    assert marked == 69 == math.ceil(math.log(2) / -math.log(0.99))


def test_an_epoch_without_steps_has_no_changes() -> None:
    record = OscillationTracker(latent_weights()).end_epoch(1)
    assert (record.change_rate, record.reversal_rate, record.oscillating) == (0.0, 0.0, 0.0)


# -- where weights lie, and scales ----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    ratios=st.lists(st.floats(-12, 12, width=32), min_size=8, max_size=8),
    bits=st.integers(2, 4),
    narrow=st.booleans(),
)
def test_distances_are_to_the_nearest_threshold_between_two_codes(
    ratios: list[float], bits: int, narrow: bool
) -> None:
    weights = latent_weights(bits, narrow)
    high = 2 ** (bits - 1) - 1
    low = -high if narrow else -high - 1
    thresholds = [code + 0.5 for code in range(low, high)]
    placed = iter(ratios)
    expected = []
    with torch.no_grad():
        for weight, scale in zip(weights.weights(), weights.scales(), strict=True):
            for index in range(weight.numel()):
                weight.view(-1)[index] = next(placed) * scale
        for weight, scale in zip(weights.weights(), weights.scales(), strict=True):
            for ratio in (weight / scale).flatten().tolist():
                expected.append(min(0.5, *(abs(ratio - t) for t in thresholds)))
    found = torch.cat([distance.flatten() for distance in threshold_distances(weights)])
    assert found.tolist() == pytest.approx(expected, abs=1e-5)

    record = OscillationTracker(weights).end_epoch(1)
    assert record.threshold_distance == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    surely_near = sum(distance < 0.0499 for distance in expected) / len(expected)
    at_most_near = sum(distance < 0.0501 for distance in expected) / len(expected)
    assert surely_near - 1e-9 <= record.near_threshold <= at_most_near + 1e-9


def test_weights_that_lie_anywhere_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(400, 500, 1))
    insert_quantizers(model, SPEC)
    weights = LatentWeights(model)
    with torch.no_grad():
        weights.weights()[0].uniform_(-6.5, 6.5).mul_(weights.scales()[0])
    record = OscillationTracker(weights).end_epoch(1)
    assert record.threshold_distance == pytest.approx(0.25, abs=0.002)
    assert record.near_threshold == pytest.approx(0.1, abs=0.004)


def test_scale_drift_is_in_octaves_and_counts_by_weights() -> None:
    weights = latent_weights()
    tracker = OscillationTracker(weights)
    with torch.no_grad():
        weights.values()[0].mul_(2.0)
        weights.values()[1].mul_(0.25)
    first, second = tracker.result().layers
    assert (first.scale_drift, second.scale_drift) == pytest.approx((1.0, 2.0))
    assert tracker.end_epoch(1).scale_drift == pytest.approx((2 * 1.0 + 6 * 2.0) / 8)


def test_a_diverged_training_still_has_a_record() -> None:
    weights = latent_weights()
    tracker = OscillationTracker(weights)
    with torch.no_grad():
        weights.weights()[0].fill_(math.nan)
        weights.values()[1].fill_(math.inf)
    tracker.observe(weights.flat_codes())
    record = tracker.end_epoch(1)
    assert all(math.isfinite(value) for value in astuple(record))
    for layer in tracker.result().layers:
        assert all(math.isfinite(v) for v in asdict(layer).values() if v != layer.name)


def test_records_are_plain_data() -> None:
    weights = latent_weights()
    tracker = OscillationTracker(weights)
    tracker.observe(-weights.flat_codes())
    tracker.end_epoch(1)
    found = tracker.result()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Oscillation) == found
    names = {
        Oscillation: "momentum threshold steps oscillating epochs layers",
        EpochOscillation: "epoch oscillating change_rate reversal_rate near_threshold "
        "threshold_distance scale_drift",
        LayerOscillation: "name weights oscillating flips reversals near_threshold "
        "threshold_distance scale_drift",
    }
    for record, expected in names.items():
        assert " ".join(record.__struct_fields__) == expected


# -- the toy problem of the paper -----------------------------------------------------------------

# Where the loss wants the weights, in steps. Only the first is a code; it sets the scale.
WANTED = torch.tensor([7.0, 1.3, -2.4, 0.6, 4.5, -5.3])


class Toy:
    """Regression through quantized weights, ``E[(x w - x q(w))^2] / 2``.

    Each output channel of a 1x1 convolution is one problem with one weight. The scale stays as it
    is: only the weights are trained.
    """

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Conv2d(1, len(WANTED), 1, bias=False))
        with torch.no_grad():
            self.model[0].get_parameter("weight").copy_(WANTED.round().view(-1, 1, 1, 1) * 0.1)
        insert_quantizers(self.model, SPEC)
        fuse_quantization(self.model)
        self.weights = LatentWeights(self.model)
        self.scale = self.weights.scales()[0]

    def train(self, stabilizer: Stabilizer | None = None, steps: int = 400) -> OscillationTracker:
        """Train with SGD, in four epochs of equal length."""
        weight = self.weights.weights()[0]
        optimizer = torch.optim.SGD([weight], lr=0.02)
        stabilizer = stabilizer or Stabilizer(self.weights)
        tracker = OscillationTracker(self.weights)
        generator = torch.Generator().manual_seed(0)
        target = WANTED.view(1, -1, 1, 1) * self.scale
        for step in range(steps):
            x = torch.randn(64, 1, 1, 1, generator=generator)
            optimizer.zero_grad()
            ((self.model(x) - x * target).square().mean(dim=0).sum() / 2).backward()
            tracker.observe(self.weights.flat_codes())
            stabilizer.before_step(step / steps, images=1)
            optimizer.step()
            stabilizer.after_step((step + 1) / steps)
            if (step + 1) % (steps // 4) == 0:
                tracker.end_epoch(4 * (step + 1) // steps)
        return tracker


@pytest.fixture(scope="module")
def plain() -> tuple[Toy, OscillationTracker]:
    """The problem after a training without a stabilizer, and what was seen of it."""
    toy = Toy()
    return toy, toy.train()


def test_a_weight_that_is_wanted_between_two_codes_oscillates(
    plain: tuple[Toy, OscillationTracker],
) -> None:
    toy, tracker = plain
    assert torch.all(tracker.frequency[1:] > 0.2)
    assert tracker.frequency[0] == 0.0
    last = tracker.result().epochs[-1]
    assert last.oscillating == pytest.approx(5 / 6)
    assert last.reversal_rate > 0.2
    # The latent weight stays at the threshold and not where the loss wants it.
    ratio = (toy.weights.weights()[0] / toy.scale).flatten()[1:]
    thresholds = torch.tensor([1.5, -2.5, 0.5, 4.5, -5.5])
    assert torch.all((ratio - thresholds).abs() < 0.05)


def test_dampening_settles_weights_within_their_step(
    plain: tuple[Toy, OscillationTracker],
) -> None:
    oscillating = plain[1].result()
    dampened = Toy()
    settled = dampened.train(Dampening(dampened.weights, weight=1.0)).result()
    assert settled.epochs[-1].change_rate == 0.0 < oscillating.epochs[-1].change_rate
    assert oscillating.layers[0].threshold_distance < 0.15
    assert settled.layers[0].threshold_distance > 0.25


def test_weak_dampening_dampens_little() -> None:
    """The penalty does something only where it outweighs the loss: here lambda > 0.3 .. 0.5."""
    toy = Toy()
    found = toy.train(Dampening(toy.weights, weight=0.01)).result()
    assert found.epochs[-1].oscillating == pytest.approx(5 / 6)


def test_freezing_stops_oscillation_for_good() -> None:
    toy = Toy()
    freezing = Freezing(
        toy.weights, momentum=0.01, first_threshold=0.1, last_threshold=0.05, start=0.25
    )
    epochs = toy.train(freezing).result().epochs
    assert epochs[0].reversal_rate > 0.1  # before it starts
    assert epochs[-1].change_rate == 0.0
    assert freezing.report() == {"frozen": pytest.approx(5 / 6)}
    ratio = (toy.weights.weights()[0] / toy.scale).flatten()
    assert torch.equal(ratio.round(), toy.weights.flat_codes().float())
    assert torch.allclose(ratio, ratio.round(), atol=1e-5)
    # The code that each had for longer is the one that the loss would rather have.
    assert ratio.round().tolist()[:4] == [7.0, 1.0, -2.0, 1.0]
