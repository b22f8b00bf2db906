"""Spreads and intervals."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.analysis.intervals import (
    MeanContrast,
    image_errors,
    mean_contrast,
    prediction_half_width,
    spread,
)

differences = st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=12)


def mean_of(values, resampled=None, images=128):
    """Return the mean contrast of a value per seed, with a list of resampled ones each."""
    columns = [values, *zip(*resampled or [], strict=True)]
    return mean_contrast(np.array(columns).T, images)


def test_a_single_value_has_no_deviation():
    assert spread([0.5]).deviation is None
    assert spread([]) is None


def test_the_deviation_is_that_of_a_sample():
    assert spread([0.6, 0.64]).deviation == pytest.approx(0.02 * math.sqrt(2))


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1001]])
def test_fewer_than_three_seeds_have_no_interval(values):
    difference = mean_of(values)
    assert difference.interval is None
    assert not difference.excludes_zero


def test_without_resamples_the_interval_is_students():
    difference = mean_of([0.01, 0.02, 0.03])
    # t(0.975, 2) = 4.302653 (any table), s = 0.01
    assert difference.interval[1] - difference.mean == pytest.approx(4.302653 * 0.01 / math.sqrt(3))
    assert not difference.images_resampled


@given(differences)
def test_the_interval_is_symmetric_about_the_mean_and_flips_with_the_sign(values):
    there = mean_of(values)
    back = mean_of([-value for value in values])
    assert there.interval[0] <= there.mean <= there.interval[1]
    assert back.interval[0] == pytest.approx(-there.interval[1], abs=1e-12)
    assert back.excludes_zero == there.excludes_zero


@given(differences, st.integers(0, 2**32))
def test_images_add_to_the_variance_of_the_seeds(values, seed):
    draw = random.Random(seed)
    noise = [draw.gauss(0, 0.01) for _ in range(40)]
    without = mean_of(values)
    with_images = mean_of(values, [[v + e for e in noise] for v in values])
    error = math.sqrt(sum((e - sum(noise) / 40) ** 2 for e in noise) / 39)
    half = with_images.interval[1] - with_images.mean
    assert half >= 1.96 * error
    # more error but also more degrees of freedom: never tighter than the normal limit of the seeds
    assert half >= (without.interval[1] - without.mean) * 1.96 / 4.31


def test_resamples_on_some_seeds_only_are_not_used():
    found = mean_of([0.1, 1.1, 2.1], [[0.1, 0.2], [math.nan] * 2, [2.1, 2.2]])
    assert not found.images_resampled
    assert found == mean_of([0.1, 1.1, 2.1])


def test_the_error_over_images_is_the_deviation_of_the_resamples():
    rows = np.array([[0.1, 0.60, 0.64], [0.1, math.nan, math.nan]])
    assert image_errors(rows) == [pytest.approx(0.02 * math.sqrt(2)), None]
    assert image_errors(rows[:, :1]) == [None, None]


@given(differences, st.floats(-0.5, 0.5))
def test_zero_tells_if_and_only_if_it_is_outside(values, mean):
    found = mean_of([value + mean for value in values])
    low, high = found.interval
    assert found.excludes_zero == (low > 0 or high < 0)
    assert not MeanContrast(2, mean, None, 2, 0, True).excludes_zero


def test_equal_values_are_told_from_zero_unless_they_are_zero():
    assert mean_of([0.25] * 3).interval == (0.25, 0.25)
    assert not mean_of([0.0] * 3).excludes_zero


def test_the_interval_covers_as_often_as_it_says():
    """Simulate crossed seeds and images; 95 % must cover the truth, and not far too much."""
    draw = random.Random(7)
    truth, covered, trials = 0.01, 0, 400
    for _ in range(trials):
        images = 0.004
        of_images = draw.gauss(0, images)
        values = [truth + of_images + draw.gauss(0, 0.006) for _ in range(4)]
        shared = [draw.gauss(0, images) for _ in range(60)]
        difference = mean_of(values, [[v + e for e in shared] for v in values])
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
