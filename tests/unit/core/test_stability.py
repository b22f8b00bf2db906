"""The verdict on a series of values."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qatval.core.stability import doubt_of_checkpoint, stability

MAP = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("series", "fp32", "status", "collapsed", "degenerate"),
    [
        ([0.26, 0.25, 0.27], 0.35, "completed-success", False, False),
        ([0.26, 0.12], 0.35, "completed-failed", True, False),  # within the first epoch
        ([0.460, 1.4e-5, 0.0, 2.5e-5], 0.677, "completed-failed", True, False),
        ([1.4e-5, 0.0, 2.5e-5], 0.677, "completed-failed", False, True),  # an older tool's series
        ([0.0, 2e-5], 0.396, "completed-failed", False, True),
        ([0.0034, 0.0034], 0.35, "completed-failed", False, True),
        ([0.0036, 0.0036], 0.35, "completed-success", False, False),
        ([2e-5], None, "completed-success", False, False),  # nothing to hold it against
        ([0.0, 0.0], None, "completed-failed", False, True),
        ([0.3, math.nan], 0.35, "completed-failed", True, False),
        ([math.nan], 0.35, "completed-failed", False, True),
        ([0.3], math.nan, "completed-success", False, False),
    ],
)
def test_verdict(series, fp32, status, collapsed, degenerate):
    verdict = stability(series, fp32)
    assert (verdict.status, verdict.collapsed, verdict.degenerate) == (
        status,
        collapsed and not degenerate,
        degenerate,
    )


@given(st.lists(MAP, min_size=1), MAP)
def test_knowing_fp32_never_makes_a_failure_a_success(series, fp32):
    with_it, without = stability(series, fp32), stability(series)
    assert without.status == "completed-success" or with_it.status == "completed-failed"


@given(MAP, st.lists(MAP, min_size=1), st.floats(0.0, 0.49))
def test_a_start_never_makes_a_collapse_good(start, series, share):
    collapsing = [*series, share * max(series)]
    assume(stability(collapsing).collapsed)  # from nothing there is no collapse
    assert stability([start, *collapsing]).collapsed


@pytest.mark.parametrize("value", [0.0, 0.0099, math.nan])
def test_an_fp32_checkpoint_that_detects_nothing_is_doubted(value):
    assert f"scores {value:.4f} on this dataset, below 0.01" in doubt_of_checkpoint(value)
    assert doubt_of_checkpoint(0.01) == ""


def test_nothing_measured_cannot_be_judged():
    with pytest.raises(ValueError, match="without a single measured value"):
        stability([])
