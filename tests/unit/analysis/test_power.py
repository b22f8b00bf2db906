"""What a comparison could have found."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qatval.analysis.intervals import MeanContrast, Term
from qatval.analysis.power import (
    POWER,
    Design,
    images_needed,
    power,
    power_of,
    seeds_needed,
    smallest_effect,
    told_as,
)

NONE = Term(0.0, 1)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30, 127])
@pytest.mark.parametrize("level", [0.05, 0.05 / 35])
@pytest.mark.parametrize("effect", [0.5, 2.0, 5.0])
def test_with_one_source_of_chance_it_is_students(freedom, level, effect):
    limit = stats.t.ppf(1 - level / 2, freedom)
    exact = stats.nct.sf(limit, freedom, effect) + stats.nct.cdf(-limit, freedom, effect)
    assert power(effect, (Term(1.0, freedom), NONE), level) == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize(
    ("seeds", "images", "level"), [(2, 128, 0.05), (3, 128, 0.005), (5, 16, 0.05), (10, 64, 0.001)]
)
def test_with_both_it_is_what_a_simulation_finds(seeds, images, level):
    design = Design(seeds, images, 0.008**2, 0.0035**2 * images)
    effect = smallest_effect(design, level)
    of_seeds, of_images = design.terms()
    draw, trials = np.random.default_rng(1), 100_000
    error = math.sqrt(of_seeds.variance + of_images.variance)
    means = draw.normal(effect, error, trials)
    limits = sum(
        stats.t.ppf(1 - level / 2, term.freedom) ** 2
        * term.variance
        * draw.chisquare(term.freedom, trials)
        / term.freedom
        for term in (of_seeds, of_images)
    )
    # standard error 0.13 %
    assert np.mean(np.abs(means) > np.sqrt(limits)) == pytest.approx(POWER, abs=0.006)


@pytest.mark.parametrize(("seeds", "level"), [(3, 0.05), (10, 0.05), (5, 0.005)])
@pytest.mark.parametrize("effect", [0.0, 0.005, 0.02])
def test_what_is_told_is_as_large_as_in_a_simulation(seeds, level, effect):
    terms = Design(seeds, 128, 0.008**2, 0.0035**2 * 128).terms()
    draw, trials = np.random.default_rng(2), 400_000
    error = math.sqrt(math.fsum(term.variance for term in terms))
    sizes = np.abs(draw.normal(effect, error, trials))
    limits = sum(
        stats.t.ppf(1 - level / 2, term.freedom) ** 2
        * term.variance
        * draw.chisquare(term.freedom, trials)
        / term.freedom
        for term in terms
    )
    told = sizes[sizes > np.sqrt(limits)]
    near = 5 * told.std() / math.sqrt(len(told))
    assert told_as(effect, terms, level) == pytest.approx(told.mean(), abs=near)


def test_half_a_point_is_told_as_the_published_simulation_has_it():
    """``claimed / true`` in docs/statistics.md: 2.3 and 3.0 with 3 seeds, 2.0 and 2.4 with 10."""
    times = [
        told_as(0.005, Design(seeds, 128, spread**2, 0.0035**2 * 128).terms(), 0.05) / 0.005
        for seeds in (3, 10)
        for spread in (0.005, 0.010)
    ]
    assert times == [pytest.approx(value, abs=0.06) for value in (2.3, 3.0, 2.0, 2.4)]


def test_without_chance_nothing_is_overstated():
    assert told_as(0.01, (NONE, NONE), 0.05) == 0.01
    assert told_as(0.001, (Term(1.0, 2), NONE), 1e-30) is None  # it never is
    certain = MeanContrast(3, 0.01, Term(0.0, 2), None, 3, 0)
    assert power_of(certain, 0.05, 0.01).half_told_as == 0.005


def test_the_audits_figures():
    """Points found with 10 seeds, 128 images: 1.1, 1.3 to 1.4 and 1.9 for the measured spreads."""
    found = [
        100 * smallest_effect(Design(10, 128, spread**2, 0.0035**2 * 128), 0.05)
        for spread in (0.005, 0.010, 0.016)
    ]
    assert found == [pytest.approx(value, abs=0.06) for value in (1.1, 1.4, 1.9)]


def test_half_a_point_is_out_of_reach_of_any_number_of_seeds():
    design = Design(10, 128, 0.005**2, 0.0035**2 * 128)
    assert seeds_needed(design, 0.05, 0.005) is None
    assert images_needed(design, 0.05, 0.005) > 128


designs = st.builds(
    Design,
    st.integers(2, 12),
    st.integers(16, 500),
    st.floats(1e-6, 1e-3),
    st.floats(1e-6, 1e-2),
)


@settings(max_examples=40)
@given(designs, st.sampled_from([0.05, 0.01, 0.002]))
def test_what_is_needed_suffices_and_one_less_does_not(design, level):
    for needed, name in ((seeds_needed, "seeds"), (images_needed, "images")):
        count = needed(design, level, 0.01)
        if count is None or count == 2:
            continue
        for number, enough in ((count, True), (count - 1, False)):
            changed = Design(**vars(design) | {name: number})
            assert (power(0.01, changed.terms(), level) >= POWER) == enough


@settings(max_examples=40)
@given(designs)
def test_a_stricter_level_finds_less(design):
    assert smallest_effect(design, 0.005) > smallest_effect(design, 0.05)


def test_a_contrast_records_its_shares():
    contrast = MeanContrast(3, 0.01, Term(3e-6, 2), Term(1e-6, 127), 3, 0)
    found = power_of(contrast, 0.05, 0.01)
    assert (found.seeds_share, found.images_share) == (0.75, 0.25)
    assert found.effect == smallest_effect(Design(3, 128, 9e-6, 128e-6), 0.05)
    without = power_of(MeanContrast(3, 0.01, Term(3e-6, 2), None, 3, 0), 0.05, 0.01)
    assert (without.images_share, without.images_needed) == (None, None)
    assert power_of(MeanContrast(1, 0.01, None, None, 1, 0), 0.05, 0.01) is None


def test_without_any_spread_everything_is_found():
    found = power_of(MeanContrast(3, 0.0, Term(0.0, 2), None, 0, 0), 0.05, 0.01)
    assert (found.effect, found.seeds_needed, found.seeds_share) == (0.0, 2, None)
