"""Which runs are taken for one and the same."""

from pathlib import Path

import pytest

from qatval.analysis.repetition import distinct
from qatval.testing import build_summary, changed, loaded

WEIGHTS = "ultralytics/train/weights/integer.safetensors"


def run(method="ema", seed=0, values=(0.41, 0.60, 0.64), /, **changes):
    summary = build_summary(method, seed, values)
    return loaded(changed(summary, changes), Path(f"runs/{changes.get('run_id', seed)}"))


def apart(name, losses=0.5):
    """Everything that tells a training from another one."""
    history = [{"epoch": 1, "value": 0.64, "metrics": {"train/box_loss": losses}}]
    return {"run_id": name, "training": {"trajectory": name, "seed": 1}, "history": history}


def test_runs_that_differ_are_all_kept():
    runs = [run(m, seed) for m in ("baseline", "ema", "ptq") for seed in (0, 1, 2)]
    assert distinct(runs) == (runs, [])


def weights(content):
    digest = {"sha256": content * 64, "bytes": 9}
    return {"artifacts": {"weights": WEIGHTS}, "files": {WEIGHTS: digest}}


SAME = [
    ("run", run(run_id="a"), run(**apart("a"))),
    ("training", run(), run(run_id="b", training={"seed": 1}, history=[])),
    # conditions across which a user may let comparisons be made
    ("training", run(), run(run_id="b", environment={"torch": "2.16.0"}, history=[])),
    ("history", run(), run(run_id="b", training={"seed": 1, "trajectory": "b"})),
    ("weights", run(**weights("a")), run(**apart("b"), **weights("a"))),
]


@pytest.mark.parametrize(("what", "first", "again"), SAME)
def test_what_is_the_same_counts_once_whatever_its_seed(what, first, again):
    kept, repetitions = distinct([first, again])
    assert kept == [first]
    assert [str(it) for it in repetitions] == [
        f"{again.root}: same {what} as {first.root} ({first.run_id}), counted once"
    ]


OTHER = {
    "weights": (run(**weights("a")), run(**apart("b"), **weights("b"))),
    "losses": (run(**apart("a")), run(**apart("b", losses=0.25))),
    "method": (run("baseline"), run("ema")),
    "learning rate of QC": (
        run("ema+qc", run_id="a"),
        run("ema+qc", run_id="b", method={"qc": {"lr": 0.1}}),
    ),
    "precision": (run(), loaded(build_summary("ema", mode="w3a16", changes={"run_id": "w3"}))),
    "untrained": (run("ptq", **weights("a")), run("ptq", 1, **weights("a"))),
    "no losses": (
        run(run_id="a", history=[{"epoch": 1, "value": 0.0}], training={"trajectory": None}),
        run(run_id="b", history=[{"epoch": 1, "value": 0.0}], training={"trajectory": None}),
    ),
}


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_what_may_well_be_another_run_counts(pair):
    assert distinct(pair) == ([*pair], [])


def test_of_two_that_disagree_the_one_that_did_not_hold_is_kept():
    stable, collapsed = run(), run("ema", 0, (0.2, 0.4, 0.1))
    stopped = loaded(build_summary("ema", error="interrupted"))
    for order in ([stopped, stable, collapsed], [collapsed, stable, stopped]):
        kept, repetitions = distinct(order)
        assert kept == [collapsed]
        assert len(repetitions) == 2
    assert distinct([stopped, stable])[0] == [stable]
