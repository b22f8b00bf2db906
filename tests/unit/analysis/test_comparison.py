"""Repetitions, groups and what the differences tell; net effects have a file of their own."""

from pathlib import Path

import msgspec
import pytest

from qatval.analysis import thresholds
from qatval.analysis.comparison import compare
from qatval.analysis.document import Comparison, Difference, Reference, ReferenceCount, Varying
from qatval.analysis.runs import Unreadable
from qatval.core.schema import published
from qatval.report.terminal import terminal_table
from qatval.testing import build_summary, build_thresholds, loaded, reduced_to_required


def run(method="ema", seed=0, final=0.6, **more):
    return loaded(build_summary(method, seed, (0.5, 0.58, final), **more))


@pytest.fixture
def seeds():
    """Baseline and ema+qc on five seeds; ema+qc is better on each."""
    gains = (0.020, 0.024, 0.018, 0.021, 0.022)
    return [
        run(method, seed, 0.6 + 0.004 * seed + (gain if method == "ema+qc" else 0))
        for seed, gain in enumerate(gains)
        for method in ("baseline", "ema+qc")
    ]


def only(document, part):
    (group,) = document.groups
    (found,) = getattr(group, part)
    return found


def test_the_document_is_valid_under_its_schema(seeds):
    stopped = run("ema", 9, error="interrupted")
    broken = Unreadable(Path("runs/broken"), "runs/broken is not JSON")
    for comparison in (compare([*seeds, stopped], [broken]), compare([])):
        text = published(comparison, "comparison")
        assert msgspec.json.decode(text, type=Comparison) == comparison


def test_what_runs_were_warned_of_is_said_once():
    runs = [run(seed=seed, changes={"warnings": ["2.0% were dropped"]}) for seed in (0, 1)]
    (warning,) = compare([*runs, run(seed=2)]).warnings
    assert warning == f"{runs[0].run_id} and 1 more: 2.0% were dropped"


def test_repetitions_are_counted_and_summarised():
    method = only(compare([run(seed=0, final=0.60), run(seed=1, final=0.64)]), "methods")
    assert method.runs == method.completed == 2
    assert method.seeds == [0, 1]
    assert method.outcomes_agree is True
    assert method.final_value.mean == pytest.approx(0.62)
    assert (method.final_value.min, method.final_value.max) == (0.60, 0.64)


def test_what_was_diagnosed_is_summarised_of_completed_runs():
    diagnosed = [
        {"oscillation": {"oscillating": 0.1 * number}, "batchnorm": {"kl_mean": 0.002}}
        for number in range(3)
    ]
    diagnosed[2] |= {"status": "incomplete", "error": {"message": "out of memory"}}
    runs = [run(seed=seed, changes=changes) for seed, changes in enumerate(diagnosed)]
    method = only(compare(runs), "methods")
    assert method.oscillating.mean == pytest.approx(0.05)
    assert (method.batchnorm_drift.count, method.batchnorm_drift.mean) == (2, 0.002)


def test_what_was_not_diagnosed_is_not_made_up():
    old = run(changes={"oscillation": None, "batchnorm": None})
    method = only(compare([old]), "methods")
    assert method.oscillating is None
    assert method.batchnorm_drift is None


def test_outcomes_that_disagree_are_said_to():
    method = only(compare([run(seed=0), run(seed=1, final=0.1)]), "methods")
    assert method.outcomes_agree is False
    assert method.collapsed == 1


def test_one_run_neither_agrees_nor_disagrees():
    assert only(compare([run()]), "methods").outcomes_agree is None


def test_a_collapsed_run_is_part_of_the_mean():
    method = only(compare([run(seed=0, final=0.60), run(seed=1, final=0.10)]), "methods")
    assert method.final_value.mean == pytest.approx(0.35)


def test_an_incomplete_run_is_shown_and_never_averaged():
    document = compare([run(seed=0, final=0.6), run(seed=1, error="out of memory")])
    method = only(document, "methods")
    assert (method.completed, method.incomplete) == (1, 1)
    assert method.final_value.count == 1
    assert document.runs[1].error == "out of memory (in training)"


def test_a_final_value_of_an_incomplete_run_is_not_used():
    stopped = run("ema", 0, error="interrupted", changes={"metrics": {"final_value": 0.9}})
    document = compare([run("baseline", 0), stopped])
    assert document.groups[0].methods[1].final_value is None
    assert document.groups[0].differences == []


def test_runs_that_are_not_comparable_are_flagged_and_never_averaged():
    document = compare([run(seed=0), run(seed=1), run(seed=2, changes={"model": {"imgsz": 160}})])
    first, second = document.groups
    assert first.methods[0].runs == 2
    assert second.methods[0].runs == 1
    assert second.name == "yolo10n/shapes/smoke (2)"
    assert second.not_comparable_with == first.name
    assert second.differs_in == [Difference("model.imgsz", 160, 128)]


def test_what_varies_between_comparable_runs_is_said():
    document = compare([run(seed=0), run(seed=1, changes={"training": {"threads": 8}})])
    assert only(document, "varying") == Varying("training.threads", ["2", "8"])


ALIKE_BUT_FOR = {
    "another lr0": ("training.overrides.lr0", {"training": {"overrides": {"lr0": 0.01}}}),
    "mosaic": ("training.overrides.mosaic", {"training": {"overrides": {"mosaic": 1.0}}}),
    "another checkpoint": ("model.checkpoint_sha256", {"model": {"checkpoint_sha256": "0" * 64}}),
    "another device": ("training.device", {"training": {"device": "0"}}),
    "other libraries": ("environment.torch", {"environment": {"torch": "2.16.0"}}),
    "another image size": ("model.imgsz", {"model": {"imgsz": 160}}),
}


@pytest.mark.parametrize(("field", "changes"), ALIKE_BUT_FOR.values(), ids=ALIKE_BUT_FOR)
def test_no_sentence_is_made_across_what_differs_and_it_is_named(field, changes):
    runs = [run("baseline", seed) for seed in range(3)]
    runs += [run("ema", seed, 0.7, changes=changes) for seed in range(3)]
    document = compare(runs)
    assert [group.differences for group in document.groups] == [[], []]
    assert [it.field for it in document.groups[1].differs_in] == [field]
    assert field in terminal_table(document)


def test_ema_of_two_decays_is_compared_with_the_baseline_apart():
    slow = {"method": {"ema": {"decay": 0.9}}}
    runs = [run("baseline", seed) for seed in range(3)]
    runs += [run("ema", seed) for seed in range(3)]
    # other runs of other seeds, or they would be taken for the same trainings
    runs += [run("ema", seed, 0.7, changes=slow) for seed in range(3, 6)]
    runs += [run("baseline", seed) for seed in range(3, 6)]
    document = compare(runs)
    assert [[it.seeds for it in group.differences] for group in document.groups] == [[3], [3]]
    assert [round(it.mean, 3) for g in document.groups for it in g.differences] == [0, 0.1]
    assert [it.field for it in document.groups[1].differs_in] == ["method.ema.decay"]


def test_sentences_across_machines_and_versions_say_so_where_the_user_asks_for_them():
    elsewhere = {"training": {"device": "0"}, "environment": {"torch": "2.16.0"}}
    runs = [run("baseline", seed) for seed in range(3)]
    runs += [run("ema", seed, 0.7, changes=elsewhere) for seed in range(3)]
    sentence = only(compare(runs, across=("machine", "versions")), "differences").sentence
    assert sentence.endswith("; across machines (GPU, cpu) and versions (torch 2.15.0, 2.16.0)")
    assert len(compare(runs, across=("versions",)).groups) == 2
    alike = [run(name, seed) for name in ("baseline", "ema") for seed in range(3)]
    asked, plain = compare(alike, across=("machine",)), compare(alike)
    assert asked.groups[0].differences == plain.groups[0].differences


def test_two_copies_of_a_run_count_once():
    document = compare([run(), run()])
    assert len(document.runs) == 1
    assert "counted once" in document.warnings[0]


def test_a_summary_that_contradicts_itself_is_a_warning():
    document = compare([run(changes={"stability": {"collapsed": True}})])
    assert "taken as collapsed" in document.warnings[0]


WAIVER = {
    "dataset": "shapes",
    "variant": "yolo10n",
    "method": "baseline",
    "profile": "smoke",
    "quantization": "w4a16 per-channel learned from max shifted",
    "seed": 0,
    "check": "reference",
    "reason": "a slower machine",
    "expires": "9999-12-31",
}


def test_runs_without_a_reference_are_said_to_be_judged_by_the_rules_alone():
    document = compare([run(seed=0), run(seed=1)], recorded=build_thresholds())
    assert only(document, "references") == ReferenceCount(
        "not judged",
        "no reference recorded for 2 of 2 completed runs: judged by the rules alone",
    )
    assert {entry.reference.result for entry in document.runs} == {"not judged"}
    assert "no reference recorded for shapes" in document.runs[0].reference.detail


def test_every_result_is_said_and_the_runs_that_differ_are_named():
    runs = [run("baseline", 0, 0.6), run("ema", 0, 0.6), run("ema", 1, 0.7), run("ema+qc", 0)]
    document = compare(runs, recorded=build_thresholds(WAIVER, baseline=0.5, ema=0.6))
    assert published(document, "comparison")
    assert [r.sentence for r in document.groups[0].references] == [
        "reference not met by 1 of 4 completed runs: ema seed 1",
        "reference not met by 1 of 4 completed runs, but waived: baseline seed 0",
        "reference met within its tolerance by 1 of 4 completed runs",
        "no reference recorded for 1 of 4 completed runs: judged by the rules alone",
    ]
    results = [entry.reference.result for entry in document.runs]
    assert results == ["waived", "passed", "failed", "not judged"]


def test_of_many_runs_that_differ_the_first_are_named():
    runs = [run("ema", seed) for seed in range(8)]
    sentence = only(compare(runs, recorded=build_thresholds(ema=0.5)), "references").sentence
    assert sentence.endswith("ema seed 5, 2 more")


def test_a_missing_final_value_fails_the_reference_even_where_none_is_recorded():
    lost = run(changes={"metrics": {"final_value": None}, "stability": {"collapsed": True}})
    (entry,) = compare([lost], recorded=build_thresholds()).runs
    assert entry.reference == Reference("failed", "the run did not record metrics.final_value")


def test_an_incomplete_run_is_held_to_no_reference():
    document = compare([run(error="interrupted")], recorded=build_thresholds(ema=0.5))
    assert document.runs[0].reference is None
    assert document.groups[0].references == []


def test_the_shipped_references_are_the_default():
    document = compare([run(final=0.662)])
    assert document == compare([run(final=0.662)], recorded=thresholds.load())
    assert only(document, "references").result == "passed"


def test_the_gate_is_in_every_comparison(seeds):
    gate = compare(seeds).gate
    assert gate.yolo10m_allowed is False
    assert gate.reasons[0].startswith("yolo10n: needs 2 completed ema+qc runs of different seeds")


def test_methods_are_in_the_contracts_order():
    document = compare([run("ema+qc"), run("dampening"), run("ema"), run("baseline")])
    methods = [method.method for method in document.groups[0].methods]
    assert methods == ["baseline", "ema", "ema+qc", "dampening"]


def test_controls_come_last_and_are_called_controls():
    names = ["ptq", "ema+bn", "bn", "fp32+ema", "fp32", "of another tool", "qc", "freeze+ema"]
    names += ["dampen+ema+qc", "dampen", "ema+qc", "ema", "baseline"]
    document = compare([run(name) for name in names])
    assert published(document, "comparison")
    (group,) = document.groups
    roles = [(method.method, method.role) for method in group.methods]
    controls = ["fp32", "fp32+ema", "ema+bn", "bn", "ptq"]
    tested = ["baseline", "ema", "ema+qc", "dampen", "dampen+ema+qc", "freeze+ema", "qc"]
    assert roles == [
        *((name, "method") for name in [*tested, "of another tool"]),
        *((name, "control") for name in controls),
    ]
    assert [r.role for r in document.runs] == [role for _, role in roles]


def compared(document):
    (group,) = document.groups
    return [(d.method, d.reference) for d in group.differences]


def test_a_method_is_compared_with_the_baseline_and_with_what_it_extends():
    names = ["baseline", "ema", "ema+qc", "dampen", "dampen+ema", "dampen+ema+qc", "qc"]
    assert compared(compare([run(name) for name in names])) == [
        ("ema", "baseline"),
        ("ema+qc", "baseline"),
        ("dampen", "baseline"),
        ("dampen+ema", "baseline"),
        ("dampen+ema+qc", "baseline"),
        ("qc", "baseline"),
        ("ema+qc", "ema"),
        ("dampen+ema", "ema"),
        ("dampen+ema+qc", "ema+qc"),
        ("dampen+ema", "dampen"),
        ("dampen+ema+qc", "dampen+ema"),
        ("ema+qc", "qc"),
    ]


def test_controls_are_compared_with_what_they_extend_and_never_across_fp32():
    names = ["baseline", "ema", "fp32", "fp32+ema", "bn", "ema+bn", "ptq"]
    assert compared(compare([run(name) for name in names])) == [
        ("ema", "baseline"),
        ("bn", "baseline"),
        ("ptq", "baseline"),
        ("ema+bn", "ema"),
        ("fp32+ema", "fp32"),
        ("ema+bn", "bn"),
    ]


def test_an_untrained_model_is_compared_with_what_it_extends_without_becoming_a_training():
    runs = [run(name) for name in ("ptq", "ptq+gptq", "ptq+gptq+shift", "shift")]
    assert compared(compare(runs)) == [("ptq+gptq", "ptq"), ("ptq+gptq+shift", "ptq+gptq")]


def test_a_method_of_another_tool_is_compared_with_the_baseline():
    runs = [run("baseline"), run("ema"), run("their own")]
    assert compared(compare(runs)) == [("ema", "baseline"), ("their own", "baseline")]


def test_precisions_are_told_apart_and_never_averaged():
    precisions = [("w4a16", "per-channel"), ("w3a16", "per-tensor"), ("w4a4", "per-channel")]
    runs = [
        run("ema", 0, mode=mode, scale=scale, changes={"run_id": f"{mode} {scale}"})
        for mode, scale in precisions
    ]
    document = compare(runs)
    started = "learned from max shifted"
    assert [(g.name, g.precision, g.methods[0].runs) for g in document.groups] == [
        ("yolo10n/shapes/smoke", "w4a16 per-channel learned from max shifted", 1),
        ("yolo10n/shapes/smoke w3a16 per-tensor", f"w3a16 per-tensor {started}", 1),
        ("yolo10n/shapes/smoke w4a4", f"w4a4 per-channel {started}", 1),
    ]
    assert document.groups[1].differs_in == [
        Difference("quantization", f"w3a16 per-tensor {started}", f"w4a16 per-channel {started}")
    ]


def test_one_float_control_is_in_the_group_of_every_precision():
    runs = [run("ema"), run("ema", mode="w3a16", changes={"run_id": "w3"}), run("fp32+ema")]
    document = compare(runs)
    names = ["yolo10n/shapes/smoke", "yolo10n/shapes/smoke w3a16"]
    assert [g.name for g in document.groups] == names
    control = next(r for r in document.runs if r.method == "fp32+ema")
    assert (control.group, control.groups, control.mode) == (names[0], names, "fp32")
    for group in document.groups:
        assert [m.method for m in group.methods] == ["ema", "fp32+ema"]


def test_float_controls_without_a_partner_are_named_for_what_they_are():
    (group,) = compare([run("fp32"), run("fp32+ema")]).groups
    assert group.name == "yolo10n/shapes/smoke fp32"
    assert (group.net_effects, group.not_net) == ([], None)


def test_five_seeds_tell(seeds):
    difference = only(compare(seeds), "differences")
    low, high = difference.interval
    assert low < difference.mean < high
    assert difference.tells
    assert difference.sentence.startswith(
        f"ema+qc is better than baseline on 5 of 5 seeds, +0.021 [{low:+.3f}, {high:+.3f}]; "
        "corrected over 1: p "
    )


def test_two_seeds_have_the_interval_of_one_degree_of_freedom(seeds):
    difference = only(compare([run("baseline", 0), run("ema", 0, 0.61)]), "differences")
    assert difference.interval is None
    finals = {("baseline", 0): 0.60, ("baseline", 1): 0.61, ("ema", 0): 0.62, ("ema", 1): 0.66}
    runs = [run(m, seed, final, resamples=0) for (m, seed), final in finals.items()]
    difference = only(compare(runs), "differences")
    # t(0.975, 1) = 12.706205 (any table); the differences are 0.02 and 0.05, their error is 0.015
    assert difference.interval[1] - difference.mean == pytest.approx(12.706205 * 0.015)
    assert difference.sentence.startswith("2 seeds do not tell ema from baseline: +0.035 [")


def test_one_seed_cannot_tell(seeds):
    difference = only(compare(seeds[:2]), "differences")
    assert difference.sentence == (
        "1 seed cannot tell ema+qc from baseline: +0.020; one seed shows no spread and finds "
        "nothing"
    )
    assert (difference.corrected, difference.power, difference.tells) == (None, None, False)


def test_worse_and_undecided_are_said_as_plainly():
    finals = {
        "baseline": (0.62, 0.61, 0.63),
        "ema": (0.52, 0.51, 0.53),
        "ema+qc": (0.6, 0.65, 0.62),
    }
    runs = [
        run(m, seed, value) for m, values in finals.items() for seed, value in enumerate(values)
    ]
    sentences = [d.sentence for d in compare(runs).groups[0].differences]
    assert sentences[0].startswith("ema is worse than baseline on 3 of 3 seeds, -0.100 [")
    assert sentences[1].startswith("3 seeds do not tell ema+qc from baseline: +0.003 [")


def test_old_summaries_are_compared():
    old = [
        loaded(reduced_to_required(r.summary))
        for r in (run("baseline", 0), run("ema", 0), run("ema", 1))
    ]
    group = compare(old).groups[0]
    assert [m.runs for m in group.methods] == [1, 2]
    assert group.dataset is None
    assert group.fp32_value is None


def test_a_difference_without_seeds_in_common_is_none():
    assert compare([run("baseline", 0), run("ema", 1)]).groups[0].differences == []
