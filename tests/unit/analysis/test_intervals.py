"""Spreads and intervals."""

import math
import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from qatval.analysis.intervals import (
    MeanContrast,
    Term,
    half_width,
    image_errors,
    mean_contrast,
    prediction_half_width,
    spread,
)

differences = st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=12)


def mean_of(values, resampled=None, images=128):
    """Return the mean contrast of a value per seed, with a list of resampled ones each."""
    columns = [values, *zip(*resampled or [], strict=True)]
    return mean_contrast(np.array(columns).T, images)


def test_a_single_value_has_no_deviation():
    assert spread([0.5]).deviation is None
    assert spread([]) is None


def test_the_deviation_is_that_of_a_sample():
    assert spread([0.6, 0.64]).deviation == pytest.approx(0.02 * math.sqrt(2))


def test_one_seed_has_no_interval_and_no_p_value():
    difference = mean_of([0.1])
    assert (difference.interval, difference.p_value) == (None, None)
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
    # another source of chance never makes it narrower
    assert half >= without.interval[1] - without.mean


def test_both_terms_have_students_t_of_their_own_degrees():
    noise = [-0.01, 0.01] * 20
    found = mean_of([0.01, 0.02, 0.03], [[v + e for e in noise] for v in (0.01, 0.02, 0.03)], 61)
    of_seeds = 4.302653**2 * 0.01**2 / 3  # t(0.975, 2), any table
    of_images = 2.000298**2 * 0.0001 * 40 / 39  # t(0.975, 60)
    half = found.interval[1] - found.mean
    assert half == pytest.approx(math.sqrt(of_seeds + of_images), rel=1e-6)


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
    assert not MeanContrast(1, mean, None, None, 1, 0).excludes_zero


def test_equal_values_are_told_from_zero_unless_they_are_zero():
    assert mean_of([0.25] * 3).interval == (0.25, 0.25)
    assert not mean_of([0.0] * 3).excludes_zero


def simulated(seeds, of_seed, of_images, images, trials):
    """Draw mean contrasts of 0, with the variances that would be measured of each."""
    draw = np.random.default_rng(7)
    means = draw.normal(0, math.sqrt(of_seed / seeds + of_images), trials)
    freedoms = (seeds - 1, images - 1)
    chances = (draw.chisquare(freedom, trials) / freedom for freedom in freedoms)
    for mean, of_seeds, again in zip(means.tolist(), *(c.tolist() for c in chances), strict=True):
        terms = Term(of_seed / seeds * of_seeds, seeds - 1), Term(of_images * again, images - 1)
        yield MeanContrast(seeds, mean, *terms, 0, 0)


@pytest.mark.parametrize("seeds", [2, 3, 4, 10])
@pytest.mark.parametrize("of_seed", [0.0, 0.005, 0.010, 0.016])
def test_it_covers_at_least_as_often_as_it_says(seeds, of_seed):
    """The standard error of the rate is 0.34 %; Welch's interval misses in 7 % at 3 seeds."""
    found = simulated(seeds, of_seed**2, 0.0035**2, 128, 4000)
    missed = sum(contrast.excludes_zero for contrast in found) / 4000
    assert missed <= 0.05 + 3 * 0.0034


@given(differences, st.integers(0, 2**32), st.floats(-0.3, 0.3))
def test_the_p_value_is_the_level_at_which_the_interval_touches_zero(values, seed, shift):
    draw = random.Random(seed)
    noise = [draw.gauss(0, 0.01) for _ in range(20)]
    found = mean_of([v + shift for v in values], [[v + shift + e for e in noise] for v in values])
    assert half_width(found.terms, found.p_value) == pytest.approx(abs(found.mean), rel=1e-6)
    assert (found.p_value < 0.05) == found.excludes_zero


@given(differences)
def test_with_seeds_alone_the_p_value_is_that_of_students_test(values):
    assume(len(set(values)) > 1)
    expected = stats.ttest_1samp(values, 0.0)
    assume(expected.pvalue > 1e-12)
    assert mean_of(values).p_value == pytest.approx(expected.pvalue, rel=1e-6)


@given(differences, st.sampled_from([-0.1, -0.005, 0.005, 0.1]))
def test_a_mean_beyond_a_bound_is_students_one_sided_test(values, bound):
    assume(np.std(values) > 1e-6)
    side = "greater" if bound < 0 else "less"
    expected = stats.ttest_1samp(values, bound, alternative=side).pvalue
    assert mean_of(values).beyond(bound) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_nothing_lies_beyond_zero_or_can_be_said_of_one_seed():
    with pytest.raises(ValueError, match="over 3 seeds"):
        mean_of([0.1, 0.2, 0.3]).beyond(0.0)
    with pytest.raises(ValueError, match="over 1 seeds"):
        mean_of([0.1]).beyond(0.1)


def test_the_prediction_interval_is_students():
    # t(0.995, 2) = 9.924843, s = 0.01
    expected = 9.924843 * 0.01 * math.sqrt(4 / 3)
    assert prediction_half_width([0.60, 0.61, 0.62], 0.99) == pytest.approx(expected)


def test_one_value_predicts_nothing():
    with pytest.raises(ValueError, match="at least 2"):
        prediction_half_width([0.6], 0.99)
