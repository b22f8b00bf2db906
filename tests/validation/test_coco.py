"""Real COCO, a GPU and the official checkpoints; skipped with the remedy where one is missing."""

from __future__ import annotations

from collections.abc import Callable

from qatval.record import violations
from qatval.runs import LoadedRun
from qatval.scenarios import Scenario


def test_run_is_stable(
    coco_scenario: Scenario,
    validation_run: Callable[[Scenario], LoadedRun],
    threshold_failures: Callable[[LoadedRun], list[str]],
) -> None:
    run = validation_run(coco_scenario)
    coverage = run.summary["quantization"]["coverage"]

    assert violations(run.summary) == []
    assert coverage["quantized"] > 0
    assert all(layer["bits"] == 4 or layer["reason"] for layer in coverage["layers"])
    assert run.summary["status"] == "completed-success"
    assert run.summary["stability"]["collapsed"] is False
    assert threshold_failures(run) == []
