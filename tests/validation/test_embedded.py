"""Real trainings on the embedded data: what any machine can run."""

from __future__ import annotations

from collections.abc import Callable

from qatval.analysis.evidence import additional_files, file_differences
from qatval.analysis.runs import LoadedRun
from qatval.core.schema import violations
from qatval.core.summary import read_summary
from qatval.testing.scenarios import Scenario

GiveRun = Callable[[Scenario], LoadedRun]


def test_run_is_stable(
    embedded_scenario: Scenario,
    validation_run: GiveRun,
    threshold_failures: Callable[[LoadedRun], list[str]],
) -> None:
    run = validation_run(embedded_scenario)
    summary = run.recorded

    assert violations(summary) == []
    assert read_summary(run.root)[1] == summary
    assert run.summary.files is not None
    assert not file_differences(run.root, run.summary.files)
    assert not [*additional_files(run.root, run.summary.files)]
    assert summary["status"] == "completed-success"
    assert summary["stability"]["collapsed"] is False
    assert threshold_failures(run) == []


def test_every_layer_is_covered(embedded_scenario: Scenario, validation_run: GiveRun) -> None:
    quantization = validation_run(embedded_scenario).recorded["quantization"]
    if quantization["mode"] == "fp32":
        assert "coverage" not in quantization
        return
    coverage = quantization["coverage"]

    assert (coverage["quantized"], coverage["exempt"]) == (107, 1)
    assert {layer["name"] for layer in coverage["layers"] if layer["reason"]} == {
        "model.23.dfl.conv"
    }
    assert {layer["bits"] for layer in coverage["layers"] if not layer["reason"]} == {4}
    assert coverage["max_levels_per_scale"] <= 16


def test_both_protocols_agree(embedded_scenario: Scenario, validation_run: GiveRun) -> None:
    metrics = validation_run(embedded_scenario).recorded["metrics"]

    coco = metrics["coco"]
    assert abs(coco["matched_map"] - coco["interpolated_map"]) <= coco["tolerance"] == 0.002
    assert abs(coco["matched_map"] - metrics["final_value"]) <= 0.0055
    assert len(metrics["bootstrap"]["values"]) == 500


def test_checkpoint_and_untrained_model(
    embedded_scenario: Scenario, validation_run: GiveRun
) -> None:
    metrics = validation_run(embedded_scenario).recorded["metrics"]

    assert metrics["fp32_value"] >= 0.6
    if metrics["ptq_value"] is None:
        assert embedded_scenario.method.startswith("fp32")
        return
    # "Clearly loses": by more than the bootstrap deviation of one mAP on these images.
    assert metrics["ptq_value"] < metrics["fp32_value"] - 0.016
