"""Rules that a scenario's run is held to, whatever was measured before.

It is worth something beside the FP32 checkpoint, it did not collapse, what was trained at a few
bits keeps at least half of FP32 and is no worse than the quantized model it started from, QC did
not cost what it started from. None ranks the methods: whether averaging or QC helps is a finding. A
rule that compares with what a control does not have (an FP32 training has no quantized model,
``ptq`` no training) does not apply to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET

from qatval.core.quantization import FLOAT_MODE
from qatval.core.stability import LEAST_SHARE_OF_FP32, stability
from qatval.core.summary import RunSummary

Result = Literal["passed", "failed", "waived", "not judged"]


@dataclass(frozen=True)
class Check:
    """One thing a run was checked for.

    Attributes:
        name: Name of the check, as a waiver refers to it.
        result: ``"not judged"`` means that nothing is recorded to judge by.
        detail: One line with the values, the limit and what to do.
    """

    name: str
    result: Result
    detail: str

    @property
    def failed(self) -> bool:
        """Whether the scenario must fail."""
        return self.result == "failed"

    def __str__(self) -> str:
        """Return the check on one line."""
        return f"{self.name} {self.result}: {self.detail}"


def judge(summary: RunSummary, untrained_tolerance: float, qc_tolerance: float) -> list[Check]:
    """Return every rule that applies to a finished run, and the checks that failed within it.

    Args:
        summary: The run. A metric that a rule needs and the run lacks fails that rule.
        untrained_tolerance: How far below its start a quantized training may end, in mAP.
        qc_tolerance: How far below its value before QC a run may end, in mAP.
    """
    checks = [_learned(summary), _final_over_best(summary)]
    checks += [Check(c.name, "failed", c.detail) for c in summary.failed_checks or ()]
    if _trains_quantized(summary):
        checks += [_half_of_fp32(summary), _untrained(summary, untrained_tolerance)]
    if summary.method.qc.enabled:
        checks.append(_qc(summary, qc_tolerance))
    return checks


def _learned(summary: RunSummary) -> Check:
    best = summary.metrics.value("best_value")
    if best is None:
        return missing("learned", "best_value")
    fp32 = summary.metrics.value("fp32_value")
    good = not stability([best], fp32).degenerate
    least = "above 0" if fp32 is None else f"1 % of the FP32 checkpoint's {fp32:.4f} or more"
    return Check("learned", _result(good), f"best mAP {best:.4f}, must be {least}")


def _final_over_best(summary: RunSummary) -> Check:
    name = "final-over-best"
    best, final = summary.metrics.value("best_value"), summary.metrics.value("final_value")
    if best is None or final is None:
        return missing(name, "best_value" if best is None else "final_value")
    good = not stability([best, final]).collapsed
    return Check(name, _result(good), f"final mAP {final:.4f}, must be at least half of {best:.4f}")


def _trains_quantized(summary: RunSummary) -> bool:
    return summary.quantization.mode != FLOAT_MODE and summary.method.training != "none"


def _half_of_fp32(summary: RunSummary) -> Check:
    name = "half-of-fp32"
    final, fp32 = summary.metrics.value("final_value"), summary.metrics.value("fp32_value")
    if final is None or fp32 is None:
        return missing(name, "final_value" if final is None else "fp32_value")
    least = LEAST_SHARE_OF_FP32 * fp32
    return Check(
        name,
        _result(final >= least),
        f"final mAP {final:.4f}, must be at least half of the FP32 checkpoint's {fp32:.4f}",
    )


def _untrained(summary: RunSummary, tolerance: float) -> Check:
    name = "untrained-w4"
    started = "ptq_value" if summary.metrics.start_value is UNSET else "start_value"
    final, untrained = summary.metrics.value("final_value"), summary.metrics.value(started)
    if final is None or untrained is None:
        return missing(name, "final_value" if final is None else started)
    return Check(
        name,
        _result(final >= untrained - tolerance),
        f"final mAP {final:.4f}, must be at least that of the "
        f"{summary.quantization.mode} model that the training started from, "
        f"{untrained:.4f} - {tolerance:g}",
    )


def _qc(summary: RunSummary, tolerance: float) -> Check:
    name = "qc-keeps"
    final, before = summary.metrics.value("final_value"), summary.metrics.value("before_qc_value")
    if final is None or before is None:
        return missing(name, "final_value" if final is None else "before_qc_value")
    return Check(
        name,
        _result(final >= before - tolerance),
        f"mAP {final:.4f} after QC, must be at least {before:.4f} (before) - {tolerance:g}",
    )


def missing(name: str, what: str) -> Check:
    """Return the failure of a check for a metric that a run lacks."""
    return Check(name, "failed", f"the run did not record metrics.{what}")


def _result(good: bool) -> Result:
    return "passed" if good else "failed"
