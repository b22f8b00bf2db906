"""The verdict on one run: did it collapse, did it succeed.

The value judged is always the primary metric on the run's own val subset. The series begins with
what the training started from, so that a collapse within the first epoch is one. For a method that
does something after training, QC or fresh BatchNorm statistics, it ends with the value after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

PRIMARY_METRIC: Final = "metrics/mAP50-95(B)"
COLLAPSE_THRESHOLD_RATIO = 0.5

DEGENERATE_SHARE = 0.01
"""What of the FP32 checkpoint's value a run must have kept at its best to be worth the name."""

LEAST_SHARE_OF_FP32 = 0.5
"""What it must keep for "held" to be the whole truth, and for a scenario to pass."""

LEAST_FP32 = 0.01
"""mAP 50-95 below which an FP32 checkpoint does not detect the dataset's objects at all. What its
quantized model holds or loses of that says nothing, so no run from it is a success."""

Status = Literal["completed-success", "completed-failed", "incomplete"]


@dataclass(frozen=True)
class Stability:
    """What a series of values says.

    Attributes:
        best: Largest value of the series.
        final: Last value of the series.
        ratio: ``final / best``, or None where that means nothing (best is 0 or not finite).
        collapsed: ``best > 0 and final < 0.5 * best``; a final value that is not finite counts
            as below every threshold.
        degenerate: The best value is below 1 % of the FP32 checkpoint's, or 0, or not finite:
            there was never anything to hold.
    """

    best: float
    final: float
    ratio: float | None
    collapsed: bool
    degenerate: bool

    @property
    def status(self) -> Status:
        """Outcome of a completed run."""
        return "completed-failed" if self.collapsed or self.degenerate else "completed-success"


def doubt_of_checkpoint(fp32: float) -> str:
    """Say why an FP32 checkpoint's value is too small to start from, "" where it is not."""
    if fp32 >= LEAST_FP32:
        return ""
    return (
        f"the FP32 checkpoint itself scores {fp32:.4f} on this dataset, below {LEAST_FP32}: look "
        "at whether it is trained for these images (16-bit ones are read as 8-bit), at boxes and "
        "at classes"
    )


def share(part: float | None, whole: float | None) -> float | None:
    """Return the ratio of two values of the metric, None where one is unknown or nothing is shared.

    A whole below a thousand-millionth is none: no images can tell it from 0.
    """
    return None if part is None or whole is None or whole < 1e-9 else part / whole


def stability(series: Sequence[float], fp32: float | None = None) -> Stability:
    """Judge the primary metric's values over a run, in order.

    Args:
        series: The start, where it was measured, every epoch, and what came after the training.
        fp32: The FP32 checkpoint's value on the same images, where it is known.

    Raises:
        ValueError: If the series is empty: a run without a value cannot be judged.
    """
    if not series:
        raise ValueError("a run without a single measured value cannot be judged")
    finite = [value for value in series if math.isfinite(value)]
    best = max(finite, default=math.nan)
    final = series[-1]
    least = 0.0 if fp32 is None or not math.isfinite(fp32) else DEGENERATE_SHARE * fp32
    degenerate = not best > 0.0 or best < least
    collapsed = not degenerate and not final >= COLLAPSE_THRESHOLD_RATIO * best
    ratio = final / best if not degenerate and math.isfinite(final) else None
    return Stability(best, final, ratio, collapsed, degenerate)
