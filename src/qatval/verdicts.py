"""The verdict on one run: did it collapse, did it succeed.

The value judged is always the primary metric on the run's own val subset. For a method that does
something after training, QC or fresh BatchNorm statistics, the series ends with the value after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qatval.config import COLLAPSE_THRESHOLD_RATIO

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
        degenerate: The best value is 0 or not finite: nothing was ever learned.
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


def stability(series: Sequence[float]) -> Stability:
    """Judge the primary metric's values over a run, in order.

    Raises:
        ValueError: If the series is empty: a run without a value cannot be judged.
    """
    if not series:
        raise ValueError("a run without a single measured value cannot be judged")
    finite = [value for value in series if math.isfinite(value)]
    best = max(finite, default=math.nan)
    final = series[-1]
    degenerate = not best > 0.0
    collapsed = not degenerate and not final >= COLLAPSE_THRESHOLD_RATIO * best
    ratio = final / best if not degenerate and math.isfinite(final) else None
    return Stability(best, final, ratio, collapsed, degenerate)
