"""Rules that a scenario's run is held to, whatever was measured before.

It is worth something beside the FP32 checkpoint, it did not collapse, what was trained keeps at
least half of FP32, at a few bits or not, and is no worse than the quantized model it started from,
QC did not cost what it started from. None ranks the methods: whether averaging or QC helps is a
finding. A rule that compares with what a control does not have (an FP32 training has no quantized
model, ``ptq`` no training) does not apply to it.

"No worse" is relative to the model: a share of the FP32 checkpoint's mAP may be lost, as images are
a sample, but never half of what there was. An absolute tolerance would let a model of little mAP
lose all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET

from qatval.core.deployment import RUNTIME_LABELS, ExportedFile
from qatval.core.quantization import FLOAT_MODE
from qatval.core.stability import COLLAPSE_THRESHOLD_RATIO, LEAST_SHARE_OF_FP32, stability
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


@dataclass(frozen=True)
class Limits:
    """What the rules allow.

    Attributes:
        untrained_tolerance: How far below its start a quantized training may end, as a share of the
            FP32 checkpoint's mAP.
        qc_tolerance: How far below its value before QC a run may end, as the same.
        exported_tolerance: How far an exported file's mAP may lie from its run's, in mAP.
        exported_size: Of a file with int4 weights, at most, as a share of the FP32 checkpoint's
            exported alike.
    """

    untrained_tolerance: float
    qc_tolerance: float
    exported_tolerance: float
    exported_size: float


def judge(summary: RunSummary, limits: Limits) -> list[Check]:
    """Return every rule that applies to a finished run, and the checks that failed within it.

    A metric that a rule needs and the run lacks fails that rule.
    """
    mode, fp32 = summary.quantization.mode, summary.metrics.value("fp32_value")
    least = "above 0" if fp32 is None else f"1 % of the FP32 checkpoint's {fp32:.4f} or more"
    checks = [
        _check(
            summary,
            "learned",
            ("best_value",),
            lambda best: not stability([best], fp32).degenerate,
            f"best mAP {{:.4f}}, must be {least}",
        ),
        _check(
            summary,
            "final-over-best",
            ("best_value", "final_value"),
            lambda best, final: not stability([best, final]).collapsed,
            "final mAP {1:.4f}, must be at least half of {0:.4f}",
        ),
        *(Check(c.name, "failed", c.detail) for c in summary.failed_checks or ()),
    ]
    if summary.method.training != "none":
        checks.append(
            _check(
                summary,
                "half-of-fp32",
                ("final_value", "fp32_value"),
                lambda final, fp32: final >= LEAST_SHARE_OF_FP32 * fp32,
                "final mAP {:.4f}, must be at least half of the FP32 checkpoint's {:.4f}",
            )
        )
    if summary.method.training != "none" and mode != FLOAT_MODE:
        started = "ptq_value" if summary.metrics.start_value is UNSET else "start_value"
        checks.append(
            _check(
                summary,
                "untrained-w4",
                ("final_value", started, "fp32_value"),
                lambda final, start, fp32: final >= _least(start, fp32, limits.untrained_tolerance),
                f"final mAP {{:.4f}}, must be at least that of the {mode} model that the training "
                f"started from, {{:.4f}}, {_less(limits.untrained_tolerance)}",
            )
        )
    if summary.method.qc.enabled:
        checks.append(
            _check(
                summary,
                "qc-keeps",
                ("final_value", "before_qc_value", "fp32_value"),
                lambda final, before, fp32: final >= _least(before, fp32, limits.qc_tolerance),
                "mAP {:.4f} after QC, must be at least what it was before, {:.4f}, "
                + _less(limits.qc_tolerance),
            )
        )
    if summary.deployment is not None:
        known = {check.name for check in checks}
        judged = judge_deployment(summary, limits)
        checks += [check for check in judged if check.name not in known]
    return checks


def judge_deployment(summary: RunSummary, limits: Limits) -> list[Check]:
    """Return the rules of an exported file: what it scores, and how large it is with int4 weights.

    What it scores is not judged where activations are quantized. Sums in another order differ in
    the last bit, which takes an activation on a rounding threshold to its next code; what follows
    moves the score of the run's own model as far (docs/deployment.md has figures).

    Args:
        summary: Of a run that exported what it delivered.
        limits: What is allowed.
    """
    assert summary.deployment is not None
    exported, fp32 = summary.deployment.exported, summary.deployment.fp32
    checks = [_exported_value(exported, summary, limits.exported_tolerance)]
    if exported.weights == "int4":
        checks.append(
            Check(
                "exported-size",
                "passed" if exported.bytes <= limits.exported_size * fp32.bytes else "failed",
                f"{exported.bytes:,} bytes with int4 weights, must be at most "
                f"{limits.exported_size:g} of the FP32 checkpoint's {fp32.bytes:,} exported alike",
            )
        )
    return checks


def _exported_value(exported: ExportedFile, summary: RunSummary, tolerance: float) -> Check:
    name, final = "exported-value", summary.metrics.final_value
    if final is None:
        return missing(name, "final_value")
    if not exported.runtimes:
        return Check(name, "failed", "the exported file was scored in no runtime")
    scored = " and ".join(
        f"{runtime.value:.4f} in {RUNTIME_LABELS[runtime.name]} {runtime.version}"
        for runtime in exported.runtimes
    )
    if summary.quantization.activation_bit_width is not None:
        detail = f"mAP of the exported file {scored}, the run's {final:.4f}: activations are "
        return Check(name, "not judged", f"{detail}rounded anew by every runtime")
    good = all(abs(runtime.value - final) <= tolerance for runtime in exported.runtimes)
    detail = f"mAP of the exported file {scored}, must be within {tolerance:g} of the run's "
    return Check(name, "passed" if good else "failed", f"{detail}{final:.4f}")


def _least(before: float, fp32: float, tolerance: float) -> float:
    """Return what is no worse than what was there before."""
    return max(before - tolerance * fp32, COLLAPSE_THRESHOLD_RATIO * before)


def _less(tolerance: float) -> str:
    return f"less {tolerance:.1%} of FP32's {{:.4f}}, and at least half of it"


def _check(
    summary: RunSummary, name: str, metrics: Sequence[str], good: Callable[..., bool], detail: str
) -> Check:
    """Check metrics; ``good`` takes their values, ``detail`` is formatted with them."""
    values = {metric: summary.metrics.value(metric) for metric in metrics}
    for metric, value in values.items():
        if value is None:
            return missing(name, metric)
    result: Result = "passed" if good(*values.values()) else "failed"
    return Check(name, result, detail.format(*values.values()))


def missing(name: str, what: str) -> Check:
    """Return the failure of a check for a metric that a run lacks."""
    return Check(name, "failed", f"the run did not record metrics.{what}")
