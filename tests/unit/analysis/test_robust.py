"""Summaries that one bad seed does not move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qatval.analysis.robust import robust

finals = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(finals)
def test_the_interquartile_mean_is_scipys_trimmed_mean(values):
    found = robust(values)
    assert found.interquartile_mean == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-12)


def test_one_collapse_among_four_moves_neither_far():
    held, fallen = robust([0.60, 0.61, 0.62, 0.63]), robust([0.60, 0.61, 0.62, 0.01])
    assert held.median - fallen.median == pytest.approx(0.01)
    assert held.interquartile_mean - fallen.interquartile_mean == pytest.approx(0.01)


def test_a_run_that_diverged_counts_as_nothing_delivered():
    assert robust([0.6, None, 0.62]) == robust([0.6, 0.0, 0.62])
    assert robust([None, None, 0.6]).median == 0.0


def test_no_runs_have_no_summary():
    assert robust([]) is None
