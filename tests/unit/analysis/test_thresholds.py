"""What a scenario's run is checked for, and how references are recorded."""

import json
from dataclasses import replace
from datetime import date

import pytest

from qatval.analysis import thresholds
from qatval.analysis.intervals import prediction_half_width
from qatval.analysis.rules import judge_deployment
from qatval.core.errors import QatvalError
from qatval.testing import build_deployment, build_summary, changed

TODAY = date(2026, 3, 1)
RULES = ["learned", "final-over-best", "half-of-fp32", "untrained-w4", "qc-keeps", "reference"]


@pytest.fixture
def shipped():
    return replace(thresholds.load(), references=(), waivers=())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "thresholds.json"
    document = json.loads(thresholds.default_path().read_text())
    path.write_text(json.dumps(document | {"references": [], "waivers": []}))
    return path


def check(summary, against):
    return {c.name: c for c in thresholds.check(summary, against, TODAY)}


def failed(summary, against):
    return [c.name for c in thresholds.check(summary, against, TODAY) if c.failed]


def recorded(file, finals, **more):
    thresholds.update(
        file, [build_summary(seed=s, values=(0.5, 0.6, v), **more) for s, v in enumerate(finals)]
    )
    return thresholds.load(file)


def test_a_good_run_passes_every_rule(shipped):
    checks = check(build_summary(), shipped)
    assert list(checks) == RULES
    assert {c.result for name, c in checks.items() if name != "reference"} == {"passed"}


@pytest.mark.parametrize(
    ("values", "changes", "fails"),
    [
        ((0.7, 0.65, 0.34), {}, ["final-over-best", "half-of-fp32", "untrained-w4", "qc-keeps"]),
        ((0.7, 0.65, 0.35), {}, ["untrained-w4", "qc-keeps"]),
        ((0.5, 0.565, 0.565), {}, ["untrained-w4"]),
        ((0.5, 0.65, 0.64), {}, ["qc-keeps"]),
        ((0.2, 0.3, 0.3), {"metrics": {"start_value": 0.2}}, ["half-of-fp32"]),
        ((0.0, 0.0, 0.0), {"metrics": {"start_value": 0.0}}, ["learned", "half-of-fp32"]),
    ],
)
def test_a_bad_run_fails_the_rules_it_breaks(shipped, values, changes, fails):
    assert failed(build_summary(values=values, changes=changes), shipped) == fails


@pytest.mark.parametrize("method", ["fp32", "fp32+ema", "ptq"])
def test_a_control_is_not_held_to_what_it_does_not_have(shipped, method):
    summary = build_summary(method, values=(0.4, 0.45, 0.5))
    assert "untrained-w4" not in check(summary, shipped)
    assert failed(summary, shipped) == []


@pytest.mark.parametrize("method", ["qc", "ema+bn", "dampen+ema+qc"])
def test_whatever_trains_quantized_is_held_to_the_untrained_model(shipped, method):
    summary = build_summary(method, mode="w3a16", values=(0.4, 0.45, 0.5))
    assert failed(summary, shipped) == ["untrained-w4"]
    assert (
        "that of the w3a16 model that the training started from, 0.6030"
        in check(summary, shipped)["untrained-w4"].detail
    )


def test_a_float_control_has_a_reference_of_its_own(file):
    (reference,) = recorded(file, (0.63, 0.64, 0.65), method="fp32").references
    assert reference["quantization"] == "fp32"


def test_the_shipped_references_hold_under_the_conditions_they_were_measured_under():
    shipped = thresholds.load().references
    found = {(r["quantization"], r["imgsz"], r["epochs"], r["batch"]) for r in shipped}
    precisions = ("w4a16 per-channel learned from max shifted", "w4a16 per-tensor learned")
    assert found == {(precision, 128, 6, 16) for precision in precisions}


@pytest.mark.parametrize(
    ("metric", "fails"),
    [
        ("best_value", ["learned", "final-over-best"]),
        ("fp32_value", ["half-of-fp32", "untrained-w4", "qc-keeps"]),
        (
            "final_value",
            ["final-over-best", "half-of-fp32", "untrained-w4", "qc-keeps", "reference"],
        ),
        ("start_value", ["untrained-w4"]),
        ("before_qc_value", ["qc-keeps"]),
    ],
)
def test_a_missing_metric_is_a_failure_never_a_pass(shipped, metric, fails):
    summary = build_summary(changes={"metrics": {metric: None}})
    assert failed(summary, shipped) == fails
    assert f"metrics.{metric}" in check(summary, shipped)[fails[0]].detail


def test_an_incomplete_run_fails(shipped):
    (only,) = thresholds.check(build_summary(error="out of memory"), shipped, TODAY)
    assert str(only) == "complete failed: the run is incomplete: out of memory"


def test_no_rule_ranks_the_methods(shipped):
    """QC below ema below baseline is a finding, not a failure."""
    finals = {"baseline": 0.65, "ema": 0.64, "ema+qc": 0.635}
    for method, final in finals.items():
        assert failed(build_summary(method, values=(0.5, 0.64, final)), shipped) == []


def test_without_a_reference_the_rules_alone_judge_and_it_says_so(shipped):
    reference = check(build_summary(), shipped)["reference"]
    assert reference.result == "not judged"
    assert (
        "shapes yolo10n ema+qc smoke w4a16 per-channel learned from max shifted 128 px 6 epochs "
        "batch 16 cpu torch 2.15 ultralytics 8.4 brevitas 0.13" in reference.detail
    )
    assert "judged by the rules alone" in reference.detail


def test_the_tolerance_comes_from_the_measured_spread(file):
    (reference,) = recorded(file, (0.63, 0.64, 0.65)).references
    assert reference["value"] == pytest.approx(0.64)
    expected = prediction_half_width([0.63, 0.64, 0.65], thresholds.PREDICTION_LEVEL)
    assert reference["tolerance"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("final", "result"), [(0.645, "passed"), (0.60, "failed"), (0.70, "failed")]
)
def test_a_reference_is_two_sided(file, final, result):
    against = recorded(file, (0.640, 0.641, 0.642, 0.643))
    found = check(build_summary(seed=7, values=(0.5, 0.6, final)), against)["reference"]
    assert found.result == result
    assert (result == "failed") == ("pytest --update-thresholds" in found.detail)


def test_two_measurements_are_no_tolerance(file):
    against = recorded(file, (0.63, 0.64))
    assert against.references[0]["tolerance"] is None
    found = check(build_summary(), against)["reference"]
    assert found.result == "not judged"
    assert "(2 measured, 3 needed for a tolerance)" in found.detail


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"device": "0"}},
        {"environment": {"torch": "2.16.1"}},
        {"dataset": {"name": "coco2017"}},
        {"training": {"profile": "short"}},
        {"method": {"variant": "ema"}},
        {"quantization": {"mode": "w3a16", "weight_bit_width": 3}},
        {"quantization": {"scale": "per-tensor"}},
        {"quantization": {"scaling": "statistics"}},
        {"quantization": {"boundary_bit_width": 8}},
        {"model": {"imgsz": 160}},
        {"training": {"epochs": 7}},
        {"training": {"batch": 8}},
    ],
    ids=str,
)
def test_a_reference_holds_for_its_key_only(file, changes):
    against = recorded(file, (0.63, 0.64, 0.65))
    assert check(build_summary(changes=changes), against)["reference"].result == "not judged"


def test_a_reference_that_names_no_device_holds_on_each(file):
    against = recorded(file, (0.63, 0.64, 0.65))
    anywhere = {k: v for k, v in against.references[0].items() if k not in ("device", "versions")}
    on_gpu = build_summary(values=(0.5, 0.6, 0.64), changes={"training": {"device": "0"}})
    found = check(on_gpu, replace(against, references=(anywhere,)))["reference"]
    assert found.result == "passed"


def test_patch_releases_share_a_reference(file):
    against = recorded(file, (0.63, 0.64, 0.65))
    patched = build_summary(changes={"environment": {"torch": "2.15.3+cu126"}})
    assert check(patched, against)["reference"].result == "passed"


WAIVER = {
    "dataset": "shapes",
    "variant": "yolo10n",
    "method": "ema+qc",
    "profile": "smoke",
    "quantization": "w4a16 per-channel learned from max shifted",
    "seed": 0,
    "check": "qc-keeps",
    "reason": "QC overshoots with this seed",
    "expires": "2026-03-01",
}
QC_LOSES = (0.5, 0.65, 0.62)


def test_a_waiver_lets_the_failure_pass_until_its_last_day(shipped):
    waived = replace(shipped, waivers=(WAIVER,))
    found = check(build_summary(values=QC_LOSES), waived)["qc-keeps"]
    assert found.result == "waived"
    assert "QC overshoots" in found.detail


def test_an_expired_waiver_fails(shipped):
    expired = replace(shipped, waivers=(WAIVER | {"expires": "2026-02-28"},))
    assert failed(build_summary(values=QC_LOSES), expired) == ["qc-keeps", "waiver of qc-keeps"]


def test_a_waiver_that_is_no_longer_needed_fails(shipped):
    checks = check(build_summary(), replace(shipped, waivers=(WAIVER,)))
    assert checks["waiver of qc-keeps"].failed
    assert "no longer needed" in checks["waiver of qc-keeps"].detail


def test_a_waiver_is_about_one_scenario(shipped):
    waived = replace(shipped, waivers=(WAIVER,))
    assert failed(build_summary(seed=1, values=QC_LOSES), waived) == ["qc-keeps"]
    assert failed(build_summary(mode="w3a16", values=QC_LOSES), waived) == ["qc-keeps"]


def test_an_update_shows_its_diff_and_keeps_the_rest(file):
    before = json.loads(file.read_text())
    diff = thresholds.update(file, [build_summary()])
    assert '+      "variant": "yolo10n"' in diff
    assert json.loads(file.read_text())["rules"] == before["rules"]


def test_the_same_measurement_again_changes_nothing(file):
    summaries = [build_summary(seed=seed) for seed in (0, 1)]
    assert thresholds.update(file, summaries)
    content = file.read_text()
    assert thresholds.update(file, summaries) == ""
    assert file.read_text() == content


def test_measurements_that_agree_join_the_recorded_ones(file):
    recorded(file, (0.63, 0.64, 0.65))
    thresholds.update(file, [build_summary(seed=3, values=(0.5, 0.6, 0.66))])
    (reference,) = thresholds.load(file).references
    assert [m["seed"] for m in reference["measured"]] == [0, 1, 2, 3]


def test_measurements_that_contradict_the_record_replace_it(file):
    recorded(file, (0.640, 0.641, 0.642, 0.643))
    thresholds.update(file, [build_summary(seed=0, values=(0.5, 0.6, 0.75))])
    (reference,) = thresholds.load(file).references
    assert [m["value"] for m in reference["measured"]] == [0.75]
    assert reference["tolerance"] is None


@pytest.mark.parametrize("more", [{"values": (0.5, 0.6, 0.1)}, {"error": "interrupted"}])
def test_a_run_without_success_is_never_recorded(file, more):
    assert thresholds.update(file, [build_summary(**more)]) == ""


def test_the_shipped_file_follows_from_what_was_measured():
    for reference in thresholds.load().references:
        values = [m["value"] for m in reference["measured"]]
        assert reference["value"] == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert (reference["tolerance"] is None) == (
            len(values) < thresholds.MEASUREMENTS_FOR_TOLERANCE
        )
        if reference["tolerance"] is not None:
            expected = prediction_half_width(values, thresholds.PREDICTION_LEVEL)
            assert reference["tolerance"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is not valid JSON"), ("{}", "is not a threshold file"), (None, "cannot read")],
)
def test_a_broken_threshold_file_is_one_line(tmp_path, content, says):
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(QatvalError, match=says) as error:
        thresholds.load(path)
    assert "\n" not in str(error.value)


def test_a_waiver_without_an_expiry_date_is_refused(file):
    document = json.loads(file.read_text())
    document["waivers"] = [{k: v for k, v in WAIVER.items() if k != "expires"}]
    file.write_text(json.dumps(document))
    with pytest.raises(QatvalError, match="'expires' is a required property"):
        thresholds.load(file)


def test_a_model_of_little_map_may_not_lose_all_of_it(shipped):
    """As real models have it: two points where the training starts, and less than a tolerance."""
    metrics = {"start_value": 0.02, "fp32_value": 0.677, "before_qc_value": 0.008}
    summary = build_summary(values=(0.02, 0.008, 0.001), changes={"metrics": metrics})
    assert {"untrained-w4", "qc-keeps"} <= set(failed(summary, shipped))


@pytest.mark.parametrize(("lost", "result"), [(0.046, "passed"), (0.048, "failed")])
def test_what_may_be_lost_is_a_share_of_fp32(shipped, lost, result):
    for fp32 in (0.68, 0.34):
        metrics = {"start_value": fp32, "fp32_value": fp32}
        summary = build_summary("ema", values=((1 - lost) * fp32,), changes={"metrics": metrics})
        assert check(summary, shipped)["untrained-w4"].result == result


@pytest.mark.parametrize("method", ["fp32", "fp32+ema"])
def test_a_float_control_keeps_half_of_its_checkpoint_too(shipped, method):
    changes = {"metrics": {"fp32_value": 0.677, "start_value": None}}
    summary = build_summary(method, values=(0.01, 0.01), changes=changes)
    assert failed(summary, shipped) == ["half-of-fp32"]


def test_the_naive_model_need_not_keep_half(shipped):
    assert "half-of-fp32" not in check(build_summary("ptq", values=(0.02,)), shipped)


def exporting(**deployment):
    changes = {"deployment": build_deployment(**deployment)}
    return build_summary(values=(0.4, 0.6, 0.64), changes=changes)


@pytest.mark.parametrize(
    ("deployment", "fails"),
    [
        ({}, []),
        ({"value": 0.6409}, []),
        ({"value": 0.6411}, ["exported-value"]),
        ({"value": 0.6389}, ["exported-value"]),
        ({"runtimes": ()}, ["exported-value"]),
        ({"size": 1_914_600}, []),
        ({"size": 1_914_601}, ["exported-size"]),
        ({"size": 2_890_000, "weights": "int8"}, []),
    ],
)
def test_an_exported_file_scores_what_its_run_does_and_is_small(shipped, deployment, fails):
    assert failed(exporting(**deployment), shipped) == fails


def test_a_file_that_is_off_in_one_runtime_fails_and_both_are_named(shipped):
    deployment = build_deployment()
    deployment["exported"]["runtimes"][1]["value"] = 0.61
    summary = build_summary(changes={"deployment": deployment})
    assert check(summary, shipped)["exported-value"].detail == (
        "mAP of the exported file 0.6400 in ONNX Runtime 1.32.0 and 0.6100 in OpenVINO 2026.4.1, "
        "must be within 0.001 of the run's 0.6400"
    )


def test_a_run_that_exported_nothing_is_not_held_to_a_file(shipped):
    assert not any(name.startswith("exported") for name in check(build_summary(), shipped))


def test_what_a_run_found_of_its_file_counts_once(shipped):
    found = {"name": "exported-value", "detail": "as the run said"}
    summary = changed(exporting(value=0.5), {"failed_checks": [found]})
    named = [c for c in thresholds.check(summary, shipped, TODAY) if c.name == "exported-value"]
    assert [(c.result, c.detail) for c in named] == [("failed", "as the run said")]
    without = changed(summary, {"metrics": {"final_value": None}})
    judged = judge_deployment(without, shipped.limits)
    assert [c.result for c in judged] == ["failed", "passed"]


def test_what_a_file_with_quantized_activations_scores_is_told_and_not_judged(shipped):
    rounded = {"mode": "w4a4", "activation_bit_width": 4}
    summary = changed(exporting(value=0.5), {"quantization": rounded})
    value, size = judge_deployment(summary, shipped.limits)
    assert value.result == "not judged"
    assert "0.5000" in value.detail
    assert size.result == "passed"
