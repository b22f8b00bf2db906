"""Levels of repeated looks, against simulation and known laws; what is a look of a plan."""

import math

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

from qatval.analysis.claims import Look
from qatval.analysis.comparison import compare
from qatval.analysis.family import Finding, Test, judge
from qatval.analysis.intervals import mean_contrast
from qatval.analysis.sequential import (
    FIRST_LOOK,
    MOST_SEEDS,
    _below,
    look_at,
    nominal,
    nominal_levels,
    plan,
    spent,
)
from qatval.analysis.stopping import standing
from qatval.core.errors import UsageError
from qatval.testing import build_summary, loaded

CONTRAST = ("ema", "baseline")
PRIMARY = dict(zip(("method", "reference"), CONTRAST, strict=True))


def t_after_each(values):
    """Return Student's t of the first 3, 4, ... values, by the textbook."""
    for n in range(FIRST_LOOK, values.shape[1] + 1):
        yield n, stats.ttest_1samp(values[:, :n], 0, axis=1).statistic


@pytest.mark.parametrize("seeds", [4, 7])
def test_what_each_look_spends_is_what_was_planned(seeds):
    repetitions = 200_000
    values = np.random.default_rng(seeds).normal(size=(repetitions, seeds))
    open_still = np.ones(repetitions, bool)
    before = 0.0
    levels = nominal_levels(seeds, 0.05)
    for (n, t), level in zip(t_after_each(values), levels, strict=True):
        told = open_still & (2 * stats.t.sf(abs(t), n - 1) <= level)
        share, before = spent(n / seeds, 0.05) - before, spent(n / seeds, 0.05)
        error = math.sqrt(share / repetitions)
        assert told.mean() == pytest.approx(share, abs=4 * error)
        open_still &= ~told


def test_one_sided_tests_at_the_same_levels_are_wrong_less_often():
    values = np.random.default_rng(0).normal(size=(100_000, 6))
    told = np.zeros(len(values), bool)
    for (n, t), level in zip(t_after_each(values), nominal_levels(6, 0.05), strict=True):
        told |= stats.t.sf(t, n - 1) <= level
    assert 0.04 < told.mean() < 0.05


@pytest.mark.parametrize("t", [-1.0, 0.3, 1.0, 2.5, 40.0])
def test_one_more_value_keeps_students_law(t):
    """Of three values r / sqrt(3) is uniform: the cosine of an angle on a sphere."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    bound = t * math.sqrt(4 / (3 + t * t))
    below = weights / 2 @ _below(np.array([bound]), nodes * math.sqrt(3), 3)
    assert below[0] == pytest.approx(stats.t.cdf(t, 3), abs=2e-4)


def test_spending_is_that_of_lan_and_demets():
    # the first of the published bounds for five looks: 4.877
    assert spent(0.2, 0.05) == pytest.approx(2 * stats.norm.sf(4.877), rel=5e-3)
    assert spent(1.0, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_levels_rise_and_end_below_what_one_look_has(seeds):
    levels = nominal_levels(seeds, 0.05)
    assert len(levels) == seeds - 2
    assert sorted(levels) == list(levels)
    assert levels[-1] <= 0.05 + 1e-9
    assert seeds > 3 or levels == (pytest.approx(0.05),)


@pytest.mark.parametrize("times", [2, 10])
def test_multiplied_levels_spend_less_than_so_many_times_as_much(times):
    """So that the factor for the smallest share of a family is enough for all of Holm's steps."""
    values = np.random.default_rng(times).normal(size=(100_000, 6))
    told = np.zeros(len(values), bool)
    for (n, t), level in zip(t_after_each(values), nominal_levels(6, 0.05 / times), strict=True):
        told |= 2 * stats.t.sf(abs(t), n - 1) <= times * level
    assert 0.035 < told.mean() < 0.049


def test_too_few_seeds_and_too_many():
    with pytest.raises(ValueError, match="at least 3"):
        nominal_levels(2, 0.05)
    for seeds in (2, MOST_SEEDS + 1):
        with pytest.raises(UsageError, match=f"takes 3 to {MOST_SEEDS} seeds, got {seeds}"):
            plan(range(seeds), None)


def series(
    planned, values, *, methods=("baseline", "ema"), changes=None, start=(0.5, 0.6), resamples=0
):
    """Return runs of a series: by seed how much more the second method has than the first."""
    recorded = {
        "series": {
            "seeds": list(planned.seeds),
            "levels": list(planned.levels),
            **({} if planned.margin is None else {"margin": planned.margin}),
        },
        "primary": PRIMARY,
    }
    return [
        loaded(
            build_summary(
                method,
                seed,
                (*start, 0.6 + gain * number),
                resamples=resamples,
                changes=recorded | (changes or {}),
            )
        )
        for seed, gain in values.items()
        for number, method in enumerate(methods)
    ]


PLAN = plan(range(6), None)
GAINS = {0: 0.010, 1: 0.012, 2: 0.011, 3: 0.0105, 4: 0.0115, 5: 0.011}


@pytest.mark.parametrize("seeds", range(1, 7))
def test_a_look_is_after_each_seed_from_the_third_on(seeds):
    runs = series(PLAN, {seed: GAINS[seed] for seed in range(seeds)})
    assert look_at(runs, CONTRAST) == Look(max(0, seeds - 2), 4, seeds, 6)


def test_runs_of_their_own_have_no_look():
    runs = [
        loaded(build_summary(method, seed, changes={"primary": PRIMARY}))
        for method in CONTRAST
        for seed in range(4)
    ]
    assert look_at(runs, CONTRAST) is None


def not_a_prefix(runs):
    return [run for run in runs if run.seed != 1]


def with_a_seed_of_its_own(runs):
    return [*runs, *(loaded(build_summary(m, 77, changes={"primary": PRIMARY})) for m in CONTRAST)]


def of_two_series(runs):
    return [*runs, *series(plan(range(7), None), {6: 0.01})]


def with_levels_of_its_own(runs):
    generous = replace(PLAN, levels=(0.05,) * 4)
    return series(generous, GAINS)


def with_a_seed_twice(runs):
    return series(replace(PLAN, seeds=(0, 1, 2, 3, 4, 4)), {s: GAINS[s] for s in range(4)})


@pytest.mark.parametrize(
    "spoil",
    [
        not_a_prefix,
        with_a_seed_of_its_own,
        of_two_series,
        with_levels_of_its_own,
        with_a_seed_twice,
    ],
)
def test_what_is_no_look_of_the_plan_claims_nothing(spoil):
    runs = spoil(series(PLAN, GAINS))
    group = compare(runs).groups[0]
    assert not any(difference.tells for difference in group.differences)
    assert "no look of its plan" in group.differences[0].sentence
    assert standing(runs, CONTRAST).told is None


def test_runs_that_declare_several_contrasts_are_no_look():
    other = {"primary": {"method": "ema", "reference": "fp32"}}
    runs = series(PLAN, GAINS) + series(PLAN, {6: 0.01}, changes=other)
    assert look_at(runs, None) == Look(0, 4, 0, 6)
    assert not compare(runs).groups[0].differences[0].tells


def test_a_method_that_lags_behind_is_looked_at_where_both_are():
    runs = [run for run in series(PLAN, GAINS) if (run.method, run.seed) != ("ema", 5)]
    assert look_at(runs, CONTRAST) == Look(3, 4, 5, 6)


def test_all_that_a_comparison_of_a_series_claims_is_at_the_look():
    methods = ("baseline", "ema", "fp32", "fp32+ema", "ptq")
    runs = series(PLAN, {seed: GAINS[seed] for seed in range(3)}, methods=methods)
    group = compare(runs).groups[0]
    claims = [*group.differences, *group.net_effects, group.against_post_training]
    assert len(claims) >= 5
    assert {claim.corrected.look for claim in claims} == {Look(1, 4, 3, 6)}


def judged(*tests):
    findings = [Finding(test, lambda verdict: verdict) for test in tests]
    verdicts = judge(findings)
    return [verdicts[finding] for finding in findings]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_claim_stands_at_the_level_of_its_look(number):
    level = PLAN.levels[number - 1]
    look = Look(number, 4, number + 2, 6)
    for p, tells in ((level * 0.999, True), (level * 1.001, False)):
        (verdict,) = judged(Test((p,), primary=True, look=look))
        assert verdict.tells is tells
        assert verdict.level == pytest.approx(level)


def test_all_others_are_held_to_the_look_as_well():
    look = Look(2, 4, 4, 6)
    level = nominal(look, 0.05 / 3)
    told, *_ = judged(
        *(Test((p,), look=look) for p in (level * 0.999, 0.5, 0.6)), Test((0.03,), primary=True)
    )
    not_told, *_ = judged(*(Test((p,), look=look) for p in (level * 1.001, 0.5, 0.6)))
    assert told.tells
    assert not not_told.tells
    assert told.level == pytest.approx(level)
    assert level < PLAN.levels[1] / 3


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.016, 0.0035), (0.016, 0.0)])
def test_looking_after_every_seed_from_3_to_10_is_wrong_too_often_and_the_plan_is_not(
    of_seeds, of_images
):
    """What the images add is the same at all looks, and looks that agree err less often."""
    trials, planned = 400, 10
    draw = np.random.default_rng(17)
    naive = told = 0
    for _ in range(trials):
        shared, resampled = draw.normal(0, of_images), draw.normal(0, of_images, (1, 40))
        values = draw.normal(0, of_seeds, (planned, 1)) + shared
        seen = np.hstack([values, values + resampled])
        stopped = by_plan = False
        for seeds in range(FIRST_LOOK, planned + 1):
            p = mean_contrast(seen[:seeds], 128).p_value
            look = Look(seeds - FIRST_LOOK + 1, planned - FIRST_LOOK + 1, seeds, planned)
            (verdict,) = judged(Test((p,), primary=True, look=look))
            stopped = stopped or p <= 0.05
            by_plan = by_plan or verdict.tells
        naive += stopped
        told += by_plan
    beyond_chance = stats.binom.ppf(0.999, trials, 0.05)
    assert naive > beyond_chance
    assert 0.08 < naive / trials < 0.2
    assert told <= beyond_chance
    assert told < naive / 2


def test_choices_are_paid_for_at_a_look_too():
    look = Look(4, 4, 6, 6)
    (verdict,) = judged(Test((0.01,), choices=3, look=look))
    assert verdict.level == pytest.approx(nominal(look, 0.05 / 3))
    assert verdict.tells is (verdict.level >= 0.01)


def test_what_is_no_look_costs_others_nothing():
    no_look = Look(0, 4, 2, 6)
    none, told = judged(Test((1e-9,), look=no_look), Test((0.04,)))
    assert not none.tells
    assert told.tells


def test_the_comparison_says_the_look_and_its_level():
    entry = compare(series(PLAN, {seed: GAINS[seed] for seed in range(4)})).groups[0].differences[0]
    assert entry.tells
    assert "primary, corrected for look 2 of 4 (level 0.0098): p < 0.001" in entry.sentence
    assert entry.corrected.look == Look(2, 4, 4, 6)
    assert entry.corrected.level == pytest.approx(PLAN.levels[1])


def test_a_series_stands_as_its_comparison_says():
    noisy = {0: 0.01, 1: 0.03, 2: -0.005, 3: 0.02, 4: 0.012, 5: 0.018}
    for seeds in range(1, 7):
        runs = series(PLAN, {seed: noisy[seed] for seed in range(seeds)})
        entry = compare(runs).groups[0].differences[0]
        stands = standing(runs, CONTRAST)
        assert stands.sentences == (entry.sentence,)
        assert (stands.told is not None) is entry.tells


def test_a_margin_of_the_plan_ends_a_series_and_is_that_of_comparisons():
    even = {0: 0.0002, 1: -0.0003, 2: 0.0001, 3: -0.0001}
    runs = series(plan(range(6), 0.005), even)
    assert standing(runs, CONTRAST).told == "ema is no worse than baseline by 0.005 or more"
    assert compare(runs).margin == 0.005
    assert compare(runs, margin=0.01).margin == 0.01
    assert standing(series(PLAN, even), CONTRAST).told is None


def test_worse_by_the_margin_is_never_no_worse():
    runs = series(plan(range(6), 0.005), {s: -0.006 + g / 100 for s, g in GAINS.items()})
    assert standing(runs, CONTRAST).told == "ema is told apart from baseline"


def test_a_series_may_be_told_by_collapses():
    planned = plan(range(12), None)
    runs = series(planned, dict.fromkeys(range(12), -0.55))
    assert standing(runs, CONTRAST).told == "how often ema and baseline collapse is told apart"
    assert standing(runs[:-10], CONTRAST).told is None
