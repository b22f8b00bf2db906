"""Photographs and checkpoints that were trained on them; skipped with the remedy where missing.

Real COCO and the official checkpoints on a GPU, and the same on a CPU at 320 px with whatever the
folder holds that QATVAL_REAL_DATA names.
"""

from __future__ import annotations

from collections.abc import Callable

from qatval.analysis.runs import LoadedRun
from qatval.core.schema import violations
from qatval.testing.scenarios import Scenario


def test_run_is_stable(
    coco_scenario: Scenario,
    validation_run: Callable[[Scenario], LoadedRun],
    threshold_failures: Callable[[LoadedRun], list[str]],
) -> None:
    run = validation_run(coco_scenario)

    assert violations(run.recorded) == []
    if run.quantized:
        coverage = run.recorded["quantization"]["coverage"]
        assert coverage["quantized"] > 0
        assert all(layer["bits"] == 4 or layer["reason"] for layer in coverage["layers"])
    assert run.recorded["status"] == "completed-success"
    assert run.recorded["stability"]["collapsed"] is False
    assert threshold_failures(run) == []
