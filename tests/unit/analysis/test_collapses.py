"""How often methods collapse, and whether one does less often than another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qatval.analysis.collapses import (
    clopper_pearson,
    collapse_difference,
    collapse_rates,
    endings,
    gets_through,
    mcnemar,
    seed_share,
    smallest_rate,
)
from qatval.analysis.family import judge
from qatval.testing import build_summary, loaded

DIVERGED = {"metrics": {"final_value": None}}
DISPUTED = {
    "status": "completed-failed",
    "failed_checks": [{"name": "reload", "detail": "the delivered file scores 0.1"}],
}


def run(method, seed, final=0.6, **more):
    return loaded(build_summary(method, seed, (0.5, 0.58, final), **more))


def collapsing(method, collapsed, of):
    return [run(method, seed, 0.01 if seed in collapsed else 0.6) for seed in range(of)]


def difference(runs, method="ema", reference="baseline", **more):
    finding = collapse_difference(runs, method, reference, primary=False, **more)
    return finding and finding.say(judge([finding])[finding])


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_clopper_and_pearsons(counts):
    exact = stats.binomtest(*counts).proportion_ci(0.95, "exact")
    assert clopper_pearson(*counts) == pytest.approx((exact.low, exact.high), abs=1e-9)


@given(st.integers(0, 20), st.integers(0, 20))
def test_the_test_is_that_of_a_fair_coin(one, other):
    expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("collapsed", "of", "said"),
    [
        (
            0,
            2,
            "0 of 2 collapsed: the rate is below 78 %; one that collapses in a run of five gets "
            "through in 64 %",
        ),
        (0, 10, "0 of 10 collapsed: the rate is below 26 %"),
        (3, 3, "3 of 3 collapsed: the rate is above 37 %"),
        (5, 10, "5 of 10 collapsed: the rate is between 19 % and 81 %"),
    ],
)
def test_the_rate_in_words(collapsed, of, said):
    (rate,) = collapse_rates(collapsing("ema", range(collapsed), of), ["ema", "baseline"])
    assert rate.sentence == said
    assert (rate.collapsed, rate.of) == (collapsed, of)


def test_the_bound_of_none_is_that_of_the_one_sided_test():
    bound = stats.binomtest(0, 2, alternative="less").proportion_ci(0.95, "exact").high
    assert f"{100 * bound:.0f} %" == "78 %"


def test_what_diverged_or_was_never_worth_anything_counts_as_collapsed():
    runs = [run("ema", 0), run("ema", 1, changes=DIVERGED)]
    runs.append(loaded(build_summary("ema", 2, (0.001, 0.001, 0.001))))
    runs.append(run("ema", 3, error="interrupted"))
    (rate,) = collapse_rates(runs, ["ema"])
    assert (rate.collapsed, rate.of, rate.diverged) == (2, 3, 1)


def test_two_seeds_of_each_of_the_gates_variants_let_a_fifth_through_in_41_percent():
    assert gets_through(2) == pytest.approx(0.64)
    assert gets_through(4) == pytest.approx(0.4096)


def test_half_of_the_baselines_runs_collapse_and_none_of_emas():
    runs = collapsing("baseline", range(5), 10) + collapsing("ema", (), 10)
    found = difference(runs)
    assert (found.collapsed, found.reference_collapsed, found.seeds) == (0, 5, 10)
    assert (found.method_alone, found.reference_alone) == (0, 5)
    assert found.p_value == pytest.approx(2 / 2**5)
    assert not found.tells
    assert found.sentence == (
        "whether ema collapses more or less often than baseline is open: on 0 of 10 seeds against "
        "5; it takes 6 seeds on which one of the two alone collapses to tell, there are 5"
    )


@pytest.mark.parametrize(("collapsed", "how"), [("baseline", "less"), ("ema", "more")])
def test_six_discordant_seeds_tell(collapsed, how):
    other = "ema" if collapsed == "baseline" else "baseline"
    runs = collapsing(collapsed, range(6), 10) + collapsing(other, (), 10)
    found = difference(runs)
    assert found.tells
    assert found.sentence.startswith(f"ema collapses {how} often than baseline, on ")
    assert "corrected over 1: p 0.031; finds a rate of 67 % against none" in found.sentence


def test_where_neither_collapsed_there_is_nothing_to_compare():
    assert difference(collapsing("baseline", (), 3) + collapsing("ema", (), 3)) is None


def test_a_diverged_run_is_a_collapsed_seed():
    runs = [run("baseline", s) for s in range(3)]
    runs += [run("ema", 0), run("ema", 1), run("ema", 2, changes=DIVERGED)]
    assert difference(runs).collapsed == 1


@pytest.mark.parametrize("finals", [(0.6, 0.01), (0.01, 0.6)])
def test_a_seed_on_which_one_of_two_runs_collapsed_is_a_collapsed_one(finals):
    repeated = [
        run("ema", 0, final, changes={"run_id": f"ema {number}"})
        for number, final in enumerate(finals)
    ]
    assert endings(repeated, "ema") == {0: "collapsed"}
    assert difference([*repeated, run("baseline", 0)]).collapsed == 1


@settings(max_examples=50)
@given(st.integers(6, 40), st.sampled_from([0.05, 0.01, 0.05 / 35]))
def test_the_smallest_rate_is_found_with_its_power(seeds, level):
    rate = smallest_rate(seeds, level)
    needed = next(k for k in range(100) if 2 / 2**k <= level)
    if rate is None:
        assert needed > seeds
    else:
        assert stats.binom.sf(needed - 1, seeds, rate) == pytest.approx(0.8)


def test_who_holds_beats_who_collapsed():
    baseline = [run("baseline", 0, 0.6), run("baseline", 1, 0.01), run("baseline", 2, 0.01)]
    ema = [run("ema", 0, 0.55), run("ema", 1, 0.6), run("ema", 2, 0.02)]
    found = seed_share([*baseline, *ema], "ema", "baseline")
    assert (found.wins, found.losses, found.ties) == (1, 1, 1)
    assert found.interval == clopper_pearson(1, 2)
    assert seed_share(baseline, "ema", "baseline") is None


def test_whether_a_disputed_run_held_is_not_known():
    runs = [run("ema", 0), run("ema", 1), run("ema", 2, changes=DISPUTED)]
    (rate,) = collapse_rates(runs, ["ema"])
    assert (rate.collapsed, rate.of) == (0, 2)
    assert rate.sentence.startswith("0 of 2 collapsed: the rate is below 78 %")
    assert rate.sentence.endswith("; 1 disputed run not counted")
    assert collapse_rates(runs[2:], ["ema"]) == []


def test_a_run_that_collapsed_is_collapsed_whatever_its_checks_say():
    disputed = [run("ema", seed, 0.01, changes=DISPUTED) for seed in range(2)]
    (rate,) = collapse_rates(disputed, ["ema"])
    assert rate.sentence == "2 of 2 collapsed: the rate is above 22 %"


def test_a_disputed_seed_is_none_on_which_one_alone_collapsed():
    runs = [
        *collapsing("baseline", range(6), 7),
        *(run("ema", seed, changes=DISPUTED if seed == 0 else None) for seed in range(7)),
    ]
    found = difference(runs)
    assert (found.seeds, found.reference_alone) == (6, 5)
    assert not found.tells
    assert found.sentence.endswith("; 1 disputed seed not counted")


def test_nobody_wins_on_a_disputed_seed():
    runs = [run("baseline", seed, 0.5) for seed in range(3)]
    runs += [run("ema", seed, changes=DISPUTED if seed == 2 else None) for seed in range(3)]
    found = seed_share(runs, "ema", "baseline")
    assert (found.wins, found.losses, found.ties) == (2, 0, 0)
    assert seed_share(runs[2:3] + runs[5:], "ema", "baseline") is None
