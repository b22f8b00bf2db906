"""The stage gate: one test per rule of the contract."""

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import UNSET

from qatval.analysis.gate import decide
from qatval.analysis.runs import Unreadable
from qatval.testing import build_summary, changed, loaded, merged, reduced_to_required

METHODS = ("baseline", "ema", "ema+qc")
COLLAPSED = (0.2, 0.4, 0.1)


def run(variant, method, seed, dataset="coco2017", **more):
    return loaded(build_summary(method, seed, variant=variant, dataset=dataset, **more))


@pytest.fixture
def held():
    """Two seeds of every method for both variants, all of them stable."""
    return [
        run(variant, method, seed)
        for variant in ("yolo10n", "yolo10s")
        for method in METHODS
        for seed in (0, 1)
    ]


def without(runs, **wanted):
    return [r for r in runs if not all(getattr(r, k) == v for k, v in wanted.items())]


def test_it_opens_when_both_variants_held(held):
    decision = decide(held)
    assert decision.yolo10m_allowed
    assert decision.unmet == []
    assert decision.reasons == [
        "yolo10n: 2 ema+qc runs without collapse, compared with the other methods on seeds 0, 1 "
        "(coco2017/smoke)",
        "yolo10s: 2 ema+qc runs without collapse, compared with the other methods on seeds 0, 1 "
        "(coco2017/smoke)",
        "4 ema+qc runs held in all: a method that collapses in one run of five gets through in "
        "41 % of cases",
    ]


@pytest.mark.parametrize("variant", ["yolo10n", "yolo10s"])
def test_each_variant_is_needed(held, variant):
    decision = decide(without(held, variant=variant))
    assert decision.reasons == [
        f"{variant}: needs 2 completed ema+qc runs of different seeds, has none",
    ]


def test_one_seed_is_not_enough(held):
    decision = decide(without(held, variant="yolo10s", method="ema+qc", seed=1))
    assert decision.reasons == [
        "yolo10s: needs 2 completed ema+qc runs of different seeds, "
        "has only yolo10s-ema+qc-smoke-seed0 of seed 0",
    ]


def test_the_same_seed_twice_is_not_enough(held):
    again = run("yolo10s", "ema+qc", 0, changes=differently("again"))
    decision = decide([*without(held, variant="yolo10s", method="ema+qc", seed=1), again])
    assert not decision.yolo10m_allowed
    assert decision.unmet[0].runs == ["yolo10s-ema+qc-smoke-seed0", "again"]


def differently(name, loss=2.0):
    """What tells another training of the same seed from the first."""
    epochs = [{"epoch": n, "value": v, "metrics": {"loss": loss}} for n, v in ((1, 0.41), (2, 0.6))]
    return {"run_id": name, "training": {"trajectory": name}, "history": epochs}


def copies(held, method, seed, **told):
    """The first run of a method under another seed, told by nothing but what is left to it."""
    changes = merged({"training": {"seed": seed}}, told)
    return [
        loaded(changed(r.summary, {"run_id": f"{r.variant} copy {seed} of {method}"} | changes))
        for r in held
        if (r.method, r.seed) == (method, 0)
    ]


COPIES = {
    "as it is": ({}, "same training"),
    "told by its history": ({"training": {"trajectory": None}}, "same history"),
}


@pytest.mark.parametrize(("told", "what"), COPIES.values(), ids=COPIES)
def test_one_training_under_several_seeds_counts_once(held, told, what):
    first = [r for r in held if r.seed == 0]
    others = [copy for m in METHODS for seed in (1, 2) for copy in copies(first, m, seed, **told)]
    decision = decide([*first, *others])
    assert not decision.yolo10m_allowed
    assert decision.reasons[0] == (
        "yolo10n: needs 2 completed ema+qc runs of different seeds, has only "
        "yolo10n-ema+qc-smoke-seed0 of seed 0; not counted: yolo10n copy 1 of ema+qc, yolo10n copy "
        f"2 of ema+qc ({what} as yolo10n-ema+qc-smoke-seed0)"
    )


def test_a_mended_copy_does_not_hide_a_collapse(held):
    collapsed = run("yolo10n", "ema+qc", 2, values=COLLAPSED)
    mended = run("yolo10n", "ema+qc", 2)
    for order in ([mended, collapsed], [collapsed, mended]):
        assert "collapsed" in decide([*held, *order]).reasons[0]


def test_all_methods_must_have_common_seeds(held):
    others = {"baseline": (2, 3), "ema": (1, 2)}
    kept = [r for r in held if r.variant == "yolo10s" or r.method == "ema+qc"]
    elsewhere = [run("yolo10n", m, seed) for m, seeds in others.items() for seed in seeds]
    assert decide([*kept, *elsewhere]).reasons == [
        "yolo10n: needs all three methods on 2 common seeds, has baseline of 2, 3, ema of 1, 2, "
        "ema+qc of 0, 1",
    ]
    assert decide([*kept, *elsewhere, run("yolo10n", "baseline", 1)]).yolo10m_allowed is False
    more = [run("yolo10n", m, seed) for m in ("baseline", "ema") for seed in (0, 1)]
    assert decide([*kept, *elsewhere[:-2], *more]).yolo10m_allowed


def drawn(dataset):
    return [
        run(variant, method, seed, dataset)
        for variant in ("yolo10n", "yolo10s")
        for method in METHODS
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("dataset", ["shapes", "shapes-9d9d80c4"])
def test_drawn_images_open_nothing(held, dataset):
    decision = decide(drawn(dataset))
    assert decision.reasons[0] == (
        "yolo10n: needs 2 completed ema+qc runs of different seeds, has none; not counted: "
        "yolo10n-ema+qc-smoke-seed0, yolo10n-ema+qc-smoke-seed1 (of drawn images)"
    )
    collapse = run("yolo10n", "ema+qc", 7, dataset, values=COLLAPSED)
    assert not decide([*held, collapse]).yolo10m_allowed  # but they close it


def annotations(runs):
    return runs[0].summary.dataset.identity["annotations"]


def test_evidence_is_of_what_is_to_be_trained_on_where_that_is_known(held):
    assert decide(held, annotations=annotations(held)).yolo10m_allowed
    shapes = drawn("shapes")
    decision = decide(held, annotations=annotations(shapes))
    assert "of another dataset than what is to be trained on" in decision.reasons[0]
    assert decide(shapes, annotations=annotations(shapes)).yolo10m_allowed


def test_both_variants_held_on_one_dataset(held):
    custom = drawn("custom-01234567")
    n, s = (without(held, variant=variant) for variant in ("yolo10s", "yolo10n"))
    other_n, other_s = (without(custom, variant=variant) for variant in ("yolo10s", "yolo10n"))
    decision = decide([*n, *other_s])
    assert not decision.yolo10m_allowed
    assert "(of another dataset)" in decision.reasons[0]
    assert decide([*n, *other_s, *renamed(other_n)]).yolo10m_allowed
    assert decide([*n, *other_s, *renamed(s)]).yolo10m_allowed


def renamed(runs):
    """The same trainings on another dataset are other trainings."""
    return [
        loaded(changed(r.summary, differently(f"{r.run_id} elsewhere", loss=3.0 + r.seed)))
        for r in runs
    ]


def test_one_epoch_opens_nothing(held):
    one = {"training": {"epochs": 1}, "history": UNSET}
    decision = decide([loaded(changed(r.summary, one)) for r in held])
    assert "yolo10n-ema+qc-smoke-seed1 (of one epoch)" in decision.reasons[0]
    # nor does a training that ended after its first, whatever it was asked for
    stopped = {"history": [{"epoch": 1, "value": 0.6}], "training": {"stopped": "nan"}}
    decision = decide([loaded(changed(r.summary, stopped)) for r in held])
    assert "(of one epoch)" in decision.reasons[0]


def test_what_cannot_be_read_closes_it_with_the_reason(held):
    broken = Unreadable(Path("runs/broken"), "runs/broken/run_summary.json is truncated")
    decision = decide(held, unreadable=[broken])
    assert decision.reasons == [
        "evidence cannot be used: runs/broken/run_summary.json is truncated"
    ]


def test_one_collapse_closes_it_however_many_held(held):
    decision = decide([*held, run("yolo10n", "ema+qc", 2, values=COLLAPSED)])
    assert decision.reasons == [
        "yolo10n: ema+qc run yolo10n-ema+qc-smoke-seed2 collapsed (final 0.100 of best 0.400)",
    ]


def test_a_run_that_never_learned_closes_it(held):
    decision = decide([*held, run("yolo10n", "ema+qc", 2, values=(0.0, 0.0))])
    assert "kept nothing of the FP32 checkpoint (best value 0.000)" in decision.reasons[0]


# What 80d85e1 recorded as successes: fresh statistics after a training that had come to nothing (on
# photographs), and SGD at a learning rate of 1 from an untrained model that scored .460 (drawn).
WORTHLESS = {
    "fresh statistics": {"best_value": 2e-5, "final_value": 2e-5, "fp32_value": 0.396},
    "a rate of 1": {
        "best_value": 2.5e-5,
        "final_value": 2.5e-5,
        "fp32_value": 0.677,
        "ptq_value": 0.460,
    },
}


@pytest.mark.parametrize("metrics", WORTHLESS.values(), ids=WORTHLESS)
def test_twelve_summaries_of_nothing_open_no_gate(metrics):
    changes = {
        "metrics": metrics | {"start_value": UNSET},  # it was not recorded then
        "stability": {"collapsed": False, "degenerate": False},
        "status": "completed-success",
    }
    runs = [
        run(variant, method, seed, changes=changes)
        for variant in ("yolo10n", "yolo10s")
        for method in METHODS
        for seed in (0, 1)
    ]
    assert {r.outcome for r in runs} == {"degenerate"}
    assert all("make it completed-failed" in r.contradiction for r in runs)
    decision = decide(runs)
    assert not decision.yolo10m_allowed
    assert [unmet.variant for unmet in decision.unmet] == ["yolo10n"] * 2 + ["yolo10s"] * 2
    assert all("kept nothing of the FP32 checkpoint" in u.reason for u in decision.unmet)


def test_a_disputed_value_closes_it(held):
    failed = [{"name": "protocols", "detail": "0.3 and 0.4"}]
    changes = {"failed_checks": failed, "status": "completed-failed"}
    decision = decide([*held, run("yolo10n", "ema+qc", 2, changes=changes)])
    assert decision.reasons == [
        "yolo10n: ema+qc run yolo10n-ema+qc-smoke-seed2 failed a check of its measurement "
        "(protocols)",
    ]


def test_a_collapse_under_other_conditions_closes_it_too(held):
    elsewhere = run("yolo10n", "ema+qc", 2, values=COLLAPSED, changes={"model": {"imgsz": 640}})
    assert not decide([*held, elsewhere]).yolo10m_allowed


@pytest.mark.parametrize("method", ["baseline", "ema"])
def test_a_collapse_of_another_method_does_not_matter(held, method):
    assert decide([*held, run("yolo10n", method, 2, values=COLLAPSED)]).yolo10m_allowed


def test_the_two_runs_must_be_comparable(held):
    other = run("yolo10n", "ema+qc", 1, changes={"model": {"imgsz": 640}})
    decision = decide([*without(held, variant="yolo10n", method="ema+qc", seed=1), other])
    assert decision.reasons == [
        "yolo10n: ema+qc runs yolo10n-ema+qc-smoke-seed0 and yolo10n-ema+qc-smoke-seed1 are not "
        "comparable: they differ in model.imgsz (128 / 640)",
    ]


def test_a_further_run_that_is_not_comparable_does_not_matter(held):
    assert decide(
        [*held, run("yolo10n", "ema+qc", 2, changes={"model": {"imgsz": 640}})]
    ).yolo10m_allowed


@pytest.mark.parametrize("method", ["baseline", "ema"])
def test_the_comparison_must_cover_all_methods(held, method):
    decision = decide(without(held, variant="yolo10s", method=method))
    assert decision.reasons == [
        f"yolo10s: no comparison covers all three methods: no completed {method} run comparable "
        "with yolo10s-ema+qc-smoke-seed0, yolo10s-ema+qc-smoke-seed1",
    ]


def test_a_method_under_other_conditions_does_not_cover(held):
    kept = without(held, variant="yolo10s", method="ema")
    assert not decide(
        [*kept, run("yolo10s", "ema", 0, changes={"model": {"imgsz": 640}})]
    ).yolo10m_allowed


@pytest.mark.parametrize("method", ["fp32", "fp32+ema", "ptq", "ema+bn", "dampen+ema+qc"])
def test_a_collapse_of_a_control_or_of_another_method_does_not_matter(held, method):
    assert decide([*held, run("yolo10n", method, 2, values=COLLAPSED)]).yolo10m_allowed


def test_another_precision_counts_neither_way(held):
    lower = [
        run(
            "yolo10n", "ema+qc", seed, mode="w3a16", values=values, changes={"run_id": f"w3 {seed}"}
        )
        for seed, values in enumerate([COLLAPSED, (0.4, 0.5, 0.6)])
    ]
    assert decide([*held, *lower]).yolo10m_allowed
    lacking = without(held, variant="yolo10n", method="ema+qc", seed=1)
    assert decide([*lacking, *lower]).reasons == [
        "yolo10n: needs 2 completed ema+qc runs of different seeds, "
        "has only yolo10n-ema+qc-smoke-seed0 of seed 0",
    ]


def test_other_methods_and_controls_do_not_cover_the_three(held):
    controls = [
        run("yolo10s", method, seed) for method in ("fp32", "fp32+ema", "qc") for seed in (0, 1)
    ]
    assert not decide([*without(held, variant="yolo10s", method="ema"), *controls]).yolo10m_allowed


def test_an_incomplete_run_counts_neither_way(held):
    stopped = run("yolo10n", "ema+qc", 2, error="out of memory")
    assert decide([*held, stopped]).yolo10m_allowed
    lacking = without(held, variant="yolo10n", method="ema+qc", seed=1)
    assert not decide([*lacking, stopped]).yolo10m_allowed


def test_an_incomplete_run_counts_against_it_when_asked_to(held):
    stopped = run("yolo10n", "ema+qc", 2, error="out of memory")
    decision = decide([*held, stopped], count_incomplete=True)
    assert decision.reasons == ["yolo10n: ema+qc run yolo10n-ema+qc-smoke-seed2 is incomplete"]


def test_an_incomplete_run_is_no_second_seed_whether_it_counts_or_not(held):
    lacking = without(held, variant="yolo10n", method="ema+qc", seed=1)
    stopped = run("yolo10n", "ema+qc", 1, error="out of memory")
    assert decide([*lacking, stopped], count_incomplete=True).reasons == [
        "yolo10n: ema+qc run yolo10n-ema+qc-smoke-seed1 is incomplete",
        "yolo10n: needs 2 completed ema+qc runs of different seeds, has only "
        "yolo10n-ema+qc-smoke-seed0 of seed 0",
    ]


def test_a_changed_copy_closes_it_though_it_counts_for_nothing(held):
    tampered = replace(held[0], differences=("run_summary.json was changed",))
    assert not decide([*held, tampered]).yolo10m_allowed


def test_runs_of_older_tools_can_open_it(held):
    assert decide([loaded(reduced_to_required(run.summary)) for run in held]).yolo10m_allowed


def test_every_unmet_criterion_is_one_line():
    decision = decide([run("yolo10n", "ema+qc", 0, values=COLLAPSED)])
    assert len(decision.reasons) == 3
    assert all("\n" not in reason for reason in decision.reasons)


def test_no_runs_at_all_leave_it_closed():
    assert [unmet.variant for unmet in decide([]).unmet] == ["yolo10n", "yolo10s"]
