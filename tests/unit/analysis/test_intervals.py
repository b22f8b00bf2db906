"""Spreads and intervals."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.analysis.intervals import (
    Contrast,
    ImageResamples,
    Term,
    mean_contrast,
    prediction_half_width,
    spread,
)

differences = st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=12)


def term(weight, value, resampled=None, images=128):
    if resampled is None:
        return Term(weight, value)
    return Term(weight, value, ImageResamples((0, images, len(resampled)), images, (*resampled,)))


def contrasts(values, resampled=None, images=128):
    return [
        Contrast(seed, (term(1, value, None if resampled is None else resampled[seed], images),))
        for seed, value in enumerate(values)
    ]


def test_a_single_value_has_no_deviation():
    assert spread([0.5]).deviation is None
    assert spread([]) is None


def test_the_deviation_is_that_of_a_sample():
    assert spread([0.6, 0.64]).deviation == pytest.approx(0.02 * math.sqrt(2))


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1001]])
def test_fewer_than_three_seeds_have_no_interval(values):
    difference = mean_contrast(contrasts(values))
    assert difference.interval is None
    assert not difference.tells


def test_without_resamples_the_interval_is_students():
    difference = mean_contrast(contrasts([0.01, 0.02, 0.03]))
    # t(0.975, 2) = 4.302653 (any table), s = 0.01
    assert difference.interval[1] - difference.mean == pytest.approx(4.302653 * 0.01 / math.sqrt(3))
    assert not difference.images_resampled


@given(differences)
def test_the_interval_is_symmetric_about_the_mean_and_flips_with_the_sign(values):
    there = mean_contrast(contrasts(values))
    back = mean_contrast(contrasts([-value for value in values]))
    assert there.interval[0] <= there.mean <= there.interval[1]
    assert back.interval[0] == pytest.approx(-there.interval[1], abs=1e-12)
    assert back.tells == there.tells


@given(differences, st.integers(0, 2**32))
def test_images_add_to_the_variance_of_the_seeds(values, seed):
    draw = random.Random(seed)
    noise = [draw.gauss(0, 0.01) for _ in range(40)]
    without = mean_contrast(contrasts(values))
    with_images = mean_contrast(contrasts(values, [[v + e for e in noise] for v in values]))
    error = math.sqrt(sum((e - sum(noise) / 40) ** 2 for e in noise) / 39)
    half = with_images.interval[1] - with_images.mean
    assert half >= 1.96 * error
    # more error but also more degrees of freedom: never tighter than the normal limit of the seeds
    assert half >= (without.interval[1] - without.mean) * 1.96 / 4.31


def test_resamples_on_some_seeds_only_are_not_used():
    without = [Contrast(seed, (term(1, 0.1 + seed / 10),)) for seed in (1, 2)]
    mixed = [Contrast(0, (term(1, 0.1, (0.1, 0.2), 8),)), *without]
    assert not mean_contrast(mixed).images_resampled


def test_seeds_that_resampled_other_images_are_not_used_together():
    some = Contrast(0, (term(1, 0.1, (0.1, 0.2), 8),))
    other = Contrast(1, (term(1, 0.1, (0.1, 0.2), 9),))
    assert not mean_contrast([some, other, other]).images_resampled


measured = st.floats(0, 1).map(lambda value: round(value, 6))
fours = st.tuples(measured, measured, measured, measured)
SIGNS = (1, -1, -1, 1)


def net(four, resampled=None):
    columns = resampled or (None,) * 4
    return Contrast(0, tuple(map(term, SIGNS, four, columns)))


@given(fours, st.lists(fours, min_size=2, max_size=6))
def test_a_contrast_is_the_plain_signed_sum_in_value_and_on_every_resample(four, resampled):
    m, r, c, cr = four
    contrast = net(four, tuple(zip(*resampled, strict=True)))
    assert contrast.value == pytest.approx((m - r) - (c - cr), abs=1e-11)
    plain = [(m - r) - (c - cr) for m, r, c, cr in resampled]
    assert contrast.resampled.values == pytest.approx(plain, abs=1e-11)
    mean = sum(plain) / len(plain)
    error = math.sqrt(sum((value - mean) ** 2 for value in plain) / (len(plain) - 1))
    assert contrast.image_error == pytest.approx(error, abs=1e-11)


@given(st.lists(fours, min_size=3, max_size=6), st.floats(-0.5, 0.5))
def test_shifting_all_four_by_a_constant_changes_nothing(seeds, shift):
    here = mean_contrast([net(four) for four in seeds])
    there = mean_contrast([net(tuple(value + shift for value in four)) for four in seeds])
    assert there.mean == pytest.approx(here.mean, abs=1e-11)
    assert there.interval == pytest.approx(here.interval, abs=1e-9)
    assert (there.positive, there.negative) == (here.positive, here.negative)


@given(st.lists(st.tuples(measured, measured, measured), min_size=3, max_size=6))
def test_equal_gains_are_a_net_effect_of_nothing_that_does_not_tell(seeds):
    equal = [net((r + gain, r, cr + gain, cr)) for r, cr, gain in seeds]
    found = mean_contrast(equal)
    assert found.mean == 0
    assert (found.positive, found.negative) == (0, 0)
    assert not found.tells


def test_a_term_without_resamples_leaves_the_contrast_without():
    assert Contrast(0, (term(1, 0.6, (0.6, 0.7)), term(-1, 0.5))).resampled is None


def test_the_interval_covers_as_often_as_it_says():
    """Simulate crossed seeds and images; 95 % must cover the truth, and not far too much."""
    draw = random.Random(7)
    truth, covered, trials = 0.01, 0, 400
    for _ in range(trials):
        images = 0.004
        of_images = draw.gauss(0, images)
        values = [truth + of_images + draw.gauss(0, 0.006) for _ in range(4)]
        shared = [draw.gauss(0, images) for _ in range(60)]
        difference = mean_contrast(contrasts(values, [[v + e for e in shared] for v in values]))
        covered += difference.interval[0] <= truth <= difference.interval[1]
    # binomial standard error 1.1 %
    assert 0.92 <= covered / trials <= 0.99


def test_the_prediction_interval_is_students():
    # t(0.995, 2) = 9.924843, s = 0.01
    expected = 9.924843 * 0.01 * math.sqrt(4 / 3)
    assert prediction_half_width([0.60, 0.61, 0.62], 0.99) == pytest.approx(expected)


def test_one_value_predicts_nothing():
    with pytest.raises(ValueError, match="at least 2"):
        prediction_half_width([0.6], 0.99)
