"""Corrected p-values, and which claims are corrected together."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.analysis.family import Finding, Test, adjusted, judge

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
