"""What a finished run's summary says of its values."""

import math

from qatval.core.measurements import FailedCheck
from qatval.run.record import finished
from qatval.testing import build_summary, reduced_to_required


def test_a_finished_run_records_the_verdict_on_its_trajectory():
    unjudged = build_summary("ema+qc", values=(0.5, 0.1, 0.6), error="not finished yet")
    summary = finished(unjudged, [0.603, 0.5, 0.1, 0.6], [FailedCheck("reload", "why not")])
    found = summary.stability.trajectory
    assert found.verdict == "evaluation diverged"
    (fall,) = found.falls
    assert (fall.epoch, fall.repaired, fall.best) == (2, True, 0.603)
    assert summary.status == "completed-failed"
    assert summary.stability.collapsed is False


def test_values_that_are_not_numbers_have_a_verdict_too():
    unjudged = build_summary("baseline", values=(0.5, math.nan), error="not finished yet")
    found = finished(unjudged, [0.603, 0.5, math.nan], []).stability.trajectory
    assert [(fall.epoch, fall.lowest) for fall in found.falls] == [(2, None)]


def test_without_epochs_there_is_none():
    untrained = build_summary("ptq", values=(0.6,), error="not finished yet")
    assert finished(untrained, [0.6], []).stability.trajectory is None
    assert reduced_to_required(build_summary()).stability.trajectory is None
