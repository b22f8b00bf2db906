"""The stage gate: one test per rule of the contract."""

import pytest
from msgspec import UNSET

from qatval.analysis.gate import decide
from qatval.testing import build_summary, loaded, reduced_to_required

METHODS = ("baseline", "ema", "ema+qc")
COLLAPSED = (0.2, 0.4, 0.1)


def run(variant, method, seed, **more):
    return loaded(build_summary(method, seed, variant=variant, **more))


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
        "(shapes/smoke)",
        "yolo10s: 2 ema+qc runs without collapse, compared with the other methods on seeds 0, 1 "
        "(shapes/smoke)",
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
    again = run("yolo10s", "ema+qc", 0, changes={"run_id": "again"})
    decision = decide([*without(held, variant="yolo10s", method="ema+qc", seed=1), again])
    assert not decision.yolo10m_allowed
    assert decision.unmet[0].runs == ["yolo10s-ema+qc-smoke-seed0", "again"]


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


def test_runs_of_older_tools_can_open_it(held):
    assert decide([loaded(reduced_to_required(run.summary)) for run in held]).yolo10m_allowed


def test_every_unmet_criterion_is_one_line():
    decision = decide([run("yolo10n", "ema+qc", 0, values=COLLAPSED)])
    assert len(decision.reasons) == 3
    assert all("\n" not in reason for reason in decision.reasons)


def test_no_runs_at_all_leave_it_closed():
    assert [unmet.variant for unmet in decide([]).unmet] == ["yolo10n", "yolo10s"]
