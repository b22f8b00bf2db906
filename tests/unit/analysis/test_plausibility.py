"""Summaries that no run leaves."""

import pytest

from qatval.analysis.plausibility import impossible
from qatval.analysis.runs import collect
from qatval.testing import build_summary, changed, reduced_to_required

METHODS = ("baseline", "ema", "ema+qc", "ema+bn", "fp32", "fp32+ema+qc", "ptq", "ptq+shift")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [(0.41, 0.6, 0.64), (0.2, 0.5, 0.1), (0.0, 0.0, 0.0)])
def test_what_a_run_leaves_is_possible(method, values):
    summary = build_summary(method, values=values)
    assert impossible(summary) is None
    assert impossible(reduced_to_required(summary)) is None


def test_the_best_value_may_be_the_start():
    assert impossible(build_summary("ema", values=(0.2, 0.3), changes=best(0.603))) is None


def best(value, **more):
    return {"metrics": {"best_value": value, **more}}


IMPOSSIBLE = {
    "an mAP of 1.7": (
        "ema",
        best(1.7, final_value=1.7),
        "records an mAP of 1.7 as metrics.best_value: it lies between 0 and 1",
    ),
    "a negative one": (
        "ema",
        {"metrics": {"fp32_value": -0.1}},
        "records an mAP of -0.1 as metrics.fp32_value: it lies between 0 and 1",
    ),
    "one in its history": (
        "ema",
        {"history": [{"epoch": 3, "value": 40.2}]},
        "records an mAP of 40.2 as epoch 3 of its history: it lies between 0 and 1",
    ),
    "a smaller best": (
        "ema",
        best(0.1, final_value=0.1),
        "records 0.1 as its best mAP, but the best of its history is 0.64",
    ),
    "a larger best": (
        "ema",
        best(0.9),
        "records 0.9 as its best mAP, but the best of its history is 0.64",
    ),
    "another final": (
        "ema",
        {"metrics": {"final_value": 0.62}},
        "records 0.62 as its final, but its history ends with 0.64",
    ),
    "a final that diverged": (
        "ema",
        {"history": [{"epoch": 1, "value": 0.64}, {"epoch": 2, "value": None}]},
        "records 0.64 as its final, but its history ends with nothing",
    ),
    "another value before QC": (
        "ema+qc",
        {"metrics": {"before_qc_value": 0.5}},
        "records 0.5 as its mAP after the training, but its history ends with 0.6",
    ),
}


@pytest.mark.parametrize(("method", "changes", "said"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_none_leaves_is_said(method, changes, said):
    assert impossible(build_summary(method, changes=changes)) == said


def test_an_incomplete_run_may_have_stopped_anywhere():
    assert impossible(build_summary("ema", error="interrupted")) is None


def test_such_a_summary_is_listed_as_unreadable(write_run):
    root = write_run("edited", changed(build_summary("ema"), best(0.1, final_value=0.1)))
    runs, (unreadable,) = collect([root])
    assert runs == []
    assert unreadable.reason == (
        f"{root / 'run_summary.json'} records 0.1 as its best mAP, but the best of its history is "
        "0.64; no run leaves that, restore it or leave it out"
    )
