"""Whether the values of a summary can be those of one run.

Digests tell a file that was changed, where there are any; these tell one that no run writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from qatval.core.summary import RunSummary

_VALUES = ("best_value", "final_value", "fp32_value", "ptq_value", "start_value")
_BEFORE = ("before_qc_value", "before_bn_value")
# what values may differ by that are the same: older tools may have rounded them
_ROUNDING = 1e-4


def impossible(summary: RunSummary) -> str | None:
    """Say what no run could have left: an mAP out of 0..1, a best or final value of no epoch.

    The best value is that of the history, of the start and of what came after the training; older
    tools left the start out. The final value is that of the last epoch, but for methods that change
    the model after it.

    Returns:
        One line, None where all is as it can be. What is not recorded contradicts nothing.
    """
    return next(_contradictions(summary), None)


def _contradictions(summary: RunSummary) -> Iterator[str]:
    metrics, history = summary.metrics, summary.history or ()
    epochs = [record.value for record in history]
    named = {f"metrics.{name}": metrics.value(name) for name in (*_VALUES, *_BEFORE)}
    named |= {f"epoch {record.epoch} of its history": record.value for record in history}
    for record in summary.deployment.exported.runtimes if summary.deployment else ():
        named[f"the exported file's in {record.name}"] = record.value
    for name, value in named.items():
        if value is not None and not 0.0 <= value <= 1.0:
            yield f"records an mAP of {value:g} as {name}: it lies between 0 and 1"
    if summary.status == "incomplete" or not epochs:
        return
    best, final = metrics.best_value, metrics.final_value
    reached = [value for value in (*epochs, final) if value is not None]
    also = [
        value for name in ("start_value", *_BEFORE) if (value := metrics.value(name)) is not None
    ]
    if best is not None and reached and not _within(best, max(reached), max(reached + also)):
        yield f"records {best:g} as its best mAP, but the best of its history is {max(reached):g}"
    before = next((value for name in _BEFORE if (value := metrics.value(name)) is not None), None)
    ended, what = (final, "final") if before is None else (before, "mAP after the training")
    if summary.method.afterwards and before is None:
        return
    last = epochs[-1]
    if (ended is None) != (last is None) or (
        ended is not None and last is not None and abs(ended - last) > _ROUNDING
    ):
        yield f"records {_shown(ended)} as its {what}, but its history ends with {_shown(last)}"


def _within(value: float, low: float, high: float) -> bool:
    return low - _ROUNDING <= value <= high + _ROUNDING


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"
