"""The verdict on a trajectory: its falls, and whether the training fell with the value."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qatval.core.stability import stability
from qatval.core.trajectory import Point, begins_fall, judge, of_run, training_loss
from qatval.testing import build_summary, reduced_to_required

VALUES = st.lists(
    st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.2, 0.4, 0.8, math.nan, math.inf]),
    min_size=1,
    max_size=25,
)


def points(values, losses=None):
    losses = losses or [None] * len(values)
    return [Point(*numbers) for numbers in zip(range(1, 99), values, losses, strict=False)]


def epochs_of(found):
    return [fall.epoch for fall in found.falls]


def below(values, least=0.01):
    """Return, by the definition alone, which values are below half of the best before them."""
    finite = [[v for v in values[:at] if math.isfinite(v)] for at in range(len(values))]
    bests = [max(before, default=0.0) for before in finite]
    return [
        best >= least and best > 0 and (not math.isfinite(value) or value < 0.5 * best)
        for value, best in zip(values, bests, strict=True)
    ]


@given(VALUES)
def test_falls_are_the_stretches_below_half_of_the_best_so_far(values):
    falls = judge(points(values)).falls
    marked = [False] * len(values)
    for fall in falls:
        marked[fall.epoch - 1 : fall.epoch - 1 + fall.epochs] = [True] * fall.epochs
    assert marked == below(values)
    for fall, following in pairwise(falls):
        assert fall.recovered is not None
        assert fall.recovered == fall.epoch + fall.epochs <= following.epoch
    for fall in falls:
        before = [v for v in values[: fall.epoch - 1] if math.isfinite(v)]
        within = values[fall.epoch - 1 : fall.epoch - 1 + fall.epochs]
        assert fall.best == max(before) == values[fall.best_epoch - 1]
        if all(map(math.isfinite, within)):
            assert fall.lowest == min(within) == values[fall.lowest_epoch - 1]
        else:
            assert fall.lowest is None
        wiped = [not math.isfinite(v) or v < 0.01 * fall.best for v in within]
        assert fall.lost == (fall.epoch + wiped.index(True) if any(wiped) else None)


@given(VALUES, st.floats(0, 1) | st.just(math.nan), st.none() | st.floats(0, 1))
def test_what_the_contract_calls_collapsed_ends_in_a_fall(values, after, fp32):
    by_ends = stability([*values, after], fp32)
    found = judge(points(values), after, fp32)
    ends = [f for f in found.falls if f.epoch is None or (not f.recovered and not f.repaired)]
    if fp32 is not None:
        assert by_ends.collapsed == bool(ends)
        assert by_ends.degenerate == (found.verdict == "never learned")
    elif by_ends.best >= 0.01:
        assert by_ends.collapsed == bool(ends)
    assert len(ends) <= 1
    if ends:
        assert ends[0].lasting
        assert found.verdict == "diverged"  # no training loss was given


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_what_never_falls_held_or_never_learned(values):
    found = judge(points(sorted(values)))
    assert found.falls == ()
    assert found.verdict == ("held" if max(values) >= 0.01 else "never learned")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0, 0.0, 0.0], "never learned"),
        ([0.0003, 0.0001, 0.0009], "never learned"),  # noise near nothing is no fall
        ([math.nan], "never learned"),
        ([0.3], "held"),
        ([0.3] * 9, "held"),
        ([0.3, 0.1, 0.3], "held"),  # a dip
        ([0.3, 0.1, 0.1, 0.3], "evaluation diverged"),
        ([0.3, 0.1], "evaluation diverged"),  # who knows what would have come
        ([0.3, math.nan], "evaluation diverged"),
    ],
)
def test_verdict_of_values_where_the_loss_falls(values, verdict):
    assert judge(points(values, [9.0 / n for n in range(1, 10)])).verdict == verdict


def test_what_the_checkpoint_scores_is_what_there_is_to_learn():
    assert judge(points([0.003, 0.004])).verdict == "never learned"
    assert judge(points([0.003, 0.004]), fp32=0.3).verdict == "held"
    assert judge(points([0.003, 0.004]), fp32=0.6).verdict == "never learned"
    assert judge(points([0.0, 0.0]), fp32=0.0).verdict == "never learned"


FALLING = [8.0 * 0.97**epoch for epoch in range(30)]
BROKEN_AT_20 = [0.3] * 19 + [0.02] * 11


def with_changes(losses, **factors):
    """Return losses with those from an epoch on multiplied, e.g. ``from_20=1.3``."""
    changed = list(losses)
    for name, factor in factors.items():
        start = int(name.removeprefix("from_"))
        changed[start - 1 :] = [loss * factor for loss in changed[start - 1 :]]
    return changed


@pytest.mark.parametrize(
    ("losses", "rose"),
    [
        (FALLING, False),
        (with_changes(FALLING, from_20=1.3), True),
        (with_changes(FALLING, from_21=1.3), True),  # it broke at the end of epoch 20
        (with_changes(FALLING, from_23=1.3), False),  # long after: an effect
        (with_changes(FALLING, from_20=1.1), False),
        ([*FALLING[:15], *(FALLING[14] * 1.06**n for n in range(1, 16))], True),  # it creeps
        (with_changes(FALLING, from_20=0.7), False),  # mosaic ends
        (with_changes(FALLING, from_18=0.7, from_20=1.3), True),  # and hides nothing
        ([5.0, 5.5, 6.0, *[6.2] * 27], True),  # still worse than when the value was best
        ([math.inf if n == 19 else loss for n, loss in enumerate(FALLING)], True),
        ([0.0] * 30, False),
        ([1e308] * 30, False),
    ],
)
def test_whether_the_training_loss_rose(losses, rose):
    found = judge(points(BROKEN_AT_20, losses))
    assert found.falls[0].loss_rose is rose
    assert found.verdict == ("training diverged" if rose else "evaluation diverged")


def test_a_warm_up_before_the_best_epoch_is_not_held_against_the_training():
    values = [0.2, 0.2, 0.25, *[0.3] * 10, *[0.02] * 5]
    losses = [5.0, 5.4, 6.0, *(6.2 * 0.99**n for n in range(15))]
    assert judge(points(values, losses)).verdict == "evaluation diverged"


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_noise_of_a_curve_is_no_rise_and_hides_no_divergence(noise):
    wrong = missed = 0
    for seed in range(200):
        draw = random.Random(seed)
        losses = [(2 + 6 * 0.9**n) * (1 + draw.gauss(0, noise)) for n in range(60)]
        at = draw.randrange(10, 58)
        values = [0.01 + 0.3 * min(1, n / 8) for n in range(at)] + [0.02] * (60 - at)
        wrong += judge(points(values, losses)).verdict != "evaluation diverged"
        broken = losses[:at] + [loss * 1.6 for loss in losses[at:]]
        missed += judge(points(values, broken)).verdict != "training diverged"
    assert wrong <= 4
    assert missed <= 4


def test_a_fall_in_the_first_epoch_has_no_loss_before_it():
    start = Point(0, 0.5)
    assert judge([start, *points([0.1, 0.1], [5.0, 4.0])]).verdict == "diverged"
    assert judge([start, *points([0.1, 0.1], [5.0, 7.0])]).verdict == "training diverged"


def test_a_loss_that_is_not_a_number_is_a_training_that_diverged():
    found = judge(points([0.3, 0.3, 0.3], [5.0, math.nan, 4.0]))
    assert (found.verdict, found.loss_not_finite, found.falls) == ("training diverged", 2, ())


def test_the_verdict_is_that_of_the_last_fall():
    values = [0.3, 0.3, 0.1, 0.1, 0.3, 0.3, 0.1, 0.1]
    found = judge(points(values, [5.0, 4.9, 8.0, 8.0, 5.0, 4.8, 4.7, 4.6]))
    assert [fall.kind for fall in found.falls] == ["training diverged", "evaluation diverged"]
    assert found.verdict == "evaluation diverged"


def test_a_collapse_that_is_repaired_after_the_training():
    found = judge(points([0.5, 0.6, 0.1], [3.0, 2.9, 2.8]), after=0.55)
    (fall,) = found.falls
    assert (fall.epoch, fall.epochs, fall.recovered, fall.repaired) == (3, 1, None, True)
    assert fall.lasting
    assert found.verdict == "evaluation diverged"
    (fall,) = judge(points([0.5, 0.6, 0.1], [3.0, 2.9, 2.8]), after=0.2).falls
    assert (fall.repaired, fall.epochs, fall.lowest) == (False, 1, 0.1)


def test_a_collapse_by_what_comes_after_the_training():
    (fall,) = judge(points([0.5, 0.6], [3.0, 2.9]), after=0.1).falls
    assert (fall.epoch, fall.epochs, fall.lowest, fall.lowest_epoch) == (None, 0, 0.1, None)
    assert not fall.repaired


def test_the_training_loss_is_the_sum_of_what_ultralytics_records():
    v10 = {"train/box_om": 1.0, "train/cls_oo": 2.0, "val/box_om": 9.0, "lr/pg0": 0.1}
    assert training_loss(v10) == 3.0
    assert math.isnan(training_loss({"train/loss": None}))
    assert training_loss({"val/loss": 1.0}) is None


def test_a_run_is_judged_from_its_start_to_what_came_after_it():
    found = of_run(build_summary("ema+qc", values=(0.5, 0.1, 0.6)))
    assert epochs_of(found) == [2]
    assert found.falls[0].repaired
    assert found.falls[0].best == 0.603  # of the start
    assert found.falls[0].loss_rose is False
    assert epochs_of(of_run(build_summary("ema", values=(0.5, 0.1)))) == [2]


@pytest.mark.parametrize(
    "summary", [build_summary("ptq", values=(0.6,)), reduced_to_required(build_summary())]
)
def test_a_run_without_epochs_has_no_trajectory(summary):
    assert of_run(summary) is None


def test_nothing_came_after_a_training_that_was_stopped():
    stopped = {"training": {"stopped": "weights are not finite after epoch 2"}}
    found = of_run(build_summary("ema+qc", values=(0.6, 0.1, 0.1), changes=stopped))
    assert [(fall.epoch, fall.epochs, fall.repaired) for fall in found.falls] == [(2, 1, False)]
    mended = of_run(build_summary("ema+qc", values=(0.6, 0.1, 0.5), changes=stopped))
    assert not mended.falls[0].repaired


def test_an_incomplete_run_is_judged_as_far_as_it_came():
    found = of_run(build_summary("ema+qc", values=(0.6, 0.1, 0.1), error="interrupted"))
    assert epochs_of(found) == [2]
    assert not found.falls[0].repaired


@given(VALUES)
@example([0.004, 0.0])  # nothing that could fall, of an FP32 checkpoint that scores more than 0.4
def test_every_fall_begins_when_it_does_by_the_values_until_then(values):
    for fp32 in (None, 0.0, 0.5):
        begun = [n for n in range(1, len(values) + 1) if begins_fall(values[:n], fp32)]
        assert begun == epochs_of(judge(points(values), fp32=fp32))
