"""Corrected p-values, and which claims are corrected together."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qatval.analysis.comparison import compare
from qatval.analysis.family import Finding, Test, adjusted, judge
from qatval.testing import build_summary, loaded

p_values = st.floats(0, 1)


def finding(*nulls, **more):
    return Finding(Test(nulls, **more), lambda verdict: verdict)


def test_holms_own_order():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 (no less than its predecessor), 0.04 * 1 (the same)
    given_values = [[0.03], [0.01], [0.04], [0.02]]
    assert adjusted(given_values) == [
        (pytest.approx(0.06),),
        (pytest.approx(0.04),),
        (pytest.approx(0.06),),
        (pytest.approx(0.06),),
    ]


def closed_test(contrasts):
    """Test every set of null hypotheses that can be true together, by Bonferroni.

    The closure principle (Marcus, Peritz and Gabriel, Biometrika 63 (1976), 655-660): a null
    hypothesis is rejected at a level if every such set that holds it is.
    """
    chosen = list(product(*(range(-1, len(nulls)) for nulls in contrasts)))
    found = [[0.0] * len(nulls) for nulls in contrasts]
    for choice in chosen:
        true = [(c, null) for c, null in enumerate(choice) if null >= 0]
        least = min((len(true) * contrasts[c][null] for c, null in true), default=0.0)
        for c, null in true:
            found[c][null] = max(found[c][null], min(1.0, least))
    return found


@given(st.lists(st.tuples(p_values), max_size=6))
def test_without_margins_it_is_the_closed_test(contrasts):
    for ours, closed in zip(adjusted(contrasts), closed_test(contrasts), strict=True):
        assert ours == pytest.approx(closed)


@given(st.lists(st.tuples(p_values, p_values, p_values), max_size=4))
def test_with_margins_it_claims_no_more_than_the_closed_test(contrasts):
    for ours, closed in zip(adjusted(contrasts), closed_test(contrasts), strict=True):
        assert all(a >= b - 1e-12 for a, b in zip(ours, closed, strict=True))


@given(st.lists(st.lists(p_values, min_size=1, max_size=3), max_size=6), st.randoms())
def test_the_order_of_the_sentences_is_nothing(contrasts, randomly):
    order = list(range(len(contrasts)))
    randomly.shuffle(order)
    found = adjusted(contrasts)
    assert adjusted([contrasts[i] for i in order]) == [found[i] for i in order]
    for nulls, corrected in zip(contrasts, found, strict=True):
        assert all(p <= q <= 1 for p, q in zip(nulls, corrected, strict=True))


@given(st.lists(p_values, min_size=2, max_size=6))
def test_smaller_stays_smaller(values):
    corrected = [p for (p,) in adjusted([[p] for p in values])]
    for (p, a), (q, b) in combinations(zip(values, corrected, strict=True), 2):
        assert (a <= b) if p < q else (b <= a) if q < p else a == b


def test_the_primary_contrast_is_tested_by_itself():
    primary, one, other = finding(0.04, primary=True), finding(0.03), finding(0.2)
    verdicts = judge([one, primary, other])
    assert (verdicts[primary].p_values, verdicts[primary].size) == ((0.04,), 1)
    assert verdicts[primary].tells
    assert (verdicts[one].p_values, verdicts[one].size) == ((0.06,), 2)
    assert not verdicts[one].tells
    assert verdicts[one].level == pytest.approx(0.025)


def test_several_primary_contrasts_are_a_family():
    two = [finding(0.04, primary=True), finding(0.5, primary=True)]
    assert judge(two)[two[0]].p_values == (pytest.approx(0.08),)


def test_a_choice_costs_its_own_claim_and_no_other():
    chosen, other = finding(0.004, choices=6), finding(0.03)
    verdicts = judge([chosen, other])
    assert verdicts[chosen].p_values == (pytest.approx(0.048),)
    assert verdicts[other].p_values == (pytest.approx(0.048),)
    assert verdicts[other].size == 2


def test_what_can_claim_nothing_costs_nothing():
    unable, other = finding(0.5, counted=False), finding(0.04)
    verdicts = judge([unable, other])
    assert (verdicts[other].p_values, verdicts[other].size) == ((0.04,), 1)
    assert not verdicts[unable].tells


def test_what_has_no_test_has_no_verdict():
    assert judge([Finding(None, lambda verdict: verdict)]) == {}


def test_the_same_evidence_is_one_test_however_often_it_is_said():
    one, again = (finding(0.04, evidence="fp32 runs") for _ in range(2))
    verdicts = judge([one, again])
    assert verdicts[one] == verdicts[again]
    assert (verdicts[one].p_values, verdicts[one].size) == ((0.04,), 1)


def test_equal_p_values_of_other_evidence_are_tests_of_their_own():
    one, other = finding(0.04), finding(0.04)
    assert judge([one, other])[one].size == 2


PRECISIONS = ("w4a16", "w3a16")


def of_two_precisions(*controls, seeds=range(3)):
    """Return runs of two precisions, and controls in float that both have."""
    ran = [(method, mode) for mode in PRECISIONS for method in ("baseline", "ema")]
    return [
        loaded(
            build_summary(
                method,
                seed,
                (0.5, 0.6, 0.6 + 0.01 * ("ema" in method) + 0.002 * seed),
                mode=mode,
                changes={"run_id": f"{mode}-{method}-{seed}"},
            )
        )
        for method, mode in (*ran, *((control, "fp32") for control in controls))
        for seed in seeds
    ]


def test_controls_in_float_count_once_though_each_precision_has_them():
    document = compare(of_two_precisions("fp32", "fp32+ema"))
    assert [group.precision.split()[0] for group in document.groups] == [*PRECISIONS]
    claims = [it for group in document.groups for it in (*group.differences, *group.net_effects)]
    in_float = [it for it in claims if it.method == "fp32+ema"]
    assert len(claims) == 6
    assert in_float[0].corrected == in_float[1].corrected
    # ema and its net effect at either precision, and the one of fp32+ema
    assert {it.corrected.size for it in claims} == {5}


def test_runs_of_each_precision_count_for_themselves():
    claims = [it for group in compare(of_two_precisions()).groups for it in group.differences]
    assert {it.corrected.size for it in claims} == {2}


def test_how_often_controls_in_float_collapse_counts_once_too():
    runs = of_two_precisions("fp32", "fp32+ema", seeds=range(6))
    collapsing = [
        loaded(replace(run.summary, metrics=replace(run.summary.metrics, final_value=0.01)))
        if run.method == "fp32"
        else run
        for run in runs
    ]
    document = compare(collapsing)
    rates = [it for group in document.groups for it in group.collapse_differences]
    assert [(it.method, it.corrected.size) for it in rates] == [("fp32+ema", 3)] * 2
