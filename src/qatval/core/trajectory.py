"""The verdict on a run epoch by epoch: where its value fell, and whether the training fell with it.

`qatval.core.stability` judges a run by its best and its last value. Here every stretch of epochs
below the same collapse line, half of the best value so far, is a fall, and the training loss beside
it tells two failures apart: a training that diverged, and a network that trains on while the one
that is evaluated (averaged, with running statistics, with other scales) is broken.

By value, one epoch below the line is a fall. The verdict takes a rule over epochs: a single epoch
that the next one comes back from is a dip, which a running median of three epochs would not see,
and makes no verdict. Of the last epoch nobody knows what would have come, so there one counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Final, NamedTuple

from qatval.core.measurements import Fall, TrajectoryRecord, TrajectoryVerdict
from qatval.core.stability import COLLAPSE_THRESHOLD_RATIO, DEGENERATE_SHARE, LEAST_FP32
from qatval.core.summary import RunSummary

_LEAST_RISE: Final = 0.1
_USUAL_BENDS: Final = 3


class Point(NamedTuple):
    """An epoch of a trajectory.

    Attributes:
        epoch: Its number; 0 for what the training started from.
        value: The metric, larger is better; NaN where it is not a number.
        loss: The training loss, NaN where it is not a number, None where it is not known.
    """

    epoch: int
    value: float
    loss: float | None = None


def training_loss(metrics: Mapping[str, float | None]) -> float | None:
    """Return the sum of the training losses among an epoch's metrics.

    Ultralytics records them with their weights, so that their sum is what the optimizer descends.

    Returns:
        NaN where one of them is not a number (None in a summary), None where there are none.
    """
    parts = [value for name, value in metrics.items() if name.startswith("train/")]
    return sum(math.nan if part is None else part for part in parts) if parts else None


def judge(
    points: Sequence[Point], after: float | None = None, fp32: float | None = None
) -> TrajectoryRecord:
    """Judge a trajectory.

    A value below 1 % of the FP32 checkpoint's, or below 0.01 where that is not known, is nothing
    that could fall: a trajectory that never reaches more never learned.

    Args:
        points: Its epochs in order, before them the start where it was measured.
        after: The value after what was done to the model after the training, None for nothing.
        fp32: The FP32 checkpoint's value on the same images, where it is known.
    """
    values = [point.value for point in points] + ([] if after is None else [after])
    least = _least(fp32)
    stretches = list(_stretches(values, least))
    bend = _bend(points, stretches)
    falls = tuple(_fall(points, values, *where, bend) for where in stretches)
    diverged = next((p.epoch for p in points if not math.isfinite(p.loss or 0.0)), None)
    lasting = [fall for fall in falls if fall.lasting]
    verdict: TrajectoryVerdict = "held"
    if diverged is not None:
        verdict = "training diverged"
    elif not any(map(_worth(least), values)):
        verdict = "never learned"
    elif lasting:  # the last one is what the run ended with, if it did not hold
        verdict = lasting[-1].kind
    return TrajectoryRecord(verdict, falls, diverged)


def of_run(summary: RunSummary) -> TrajectoryRecord | None:
    """Judge the trajectory that a summary records, None where it records no epochs."""
    if not summary.history:
        return None
    metrics = summary.metrics
    start = metrics.value("start_value")
    points = [] if start is None else [Point(0, start)]
    points += [
        Point(record.epoch, _number(record.value), training_loss(record.metrics or {}))
        for record in summary.history
    ]
    changed = summary.status != "incomplete" and summary.method.afterwards is not None
    stopped = summary.training.stopped is not None  # nothing came after the training then
    after = _number(metrics.final_value) if changed and not stopped else None
    return judge(points, after, metrics.fp32_value)


def begins_fall(values: Sequence[float], fp32: float | None = None) -> bool:
    """Return whether a fall begins with the last of the values so far; see `judge`."""
    return any(begin == len(values) - 1 for _, begin, _ in _stretches(values, _least(fp32)))


def _stretches(values: Sequence[float], least: float) -> Iterator[tuple[int, int, int]]:
    """Yield of each fall the place of the best value so far, its first place, and the one after."""
    worth = _worth(least)
    best: int | None = None
    begin: int | None = None
    for place, value in enumerate(values):
        finite = math.isfinite(value)
        if best is not None and not (finite and value >= COLLAPSE_THRESHOLD_RATIO * values[best]):
            begin = place if begin is None else begin
            continue
        if best is not None and begin is not None:
            yield best, begin, place
            begin = None
        if worth(value) and (best is None or value > values[best]):
            best = place
    if best is not None and begin is not None:
        yield best, begin, len(values)


def _least(fp32: float | None) -> float:
    """Return the least value that could fall."""
    return LEAST_FP32 if fp32 is None or not math.isfinite(fp32) else DEGENERATE_SHARE * fp32


def _worth(least: float) -> Callable[[float], bool]:
    """Return what tells whether a value could fall."""
    return lambda value: math.isfinite(value) and value > 0.0 and value >= least


def _fall(
    points: Sequence[Point], values: Sequence[float], best: int, begin: int, end: int, bend: float
) -> Fall:
    """Describe the fall from `begin` to before `end`; the value after the training is no point."""
    trained = len(points)
    below = range(begin, end)
    nothing = DEGENERATE_SHARE * values[best]
    lowest = min(below, key=lambda place: values[place] if math.isfinite(values[place]) else -1.0)
    lost = [
        place
        for place in below[: trained - begin]
        if not (math.isfinite(values[place]) and values[place] >= nothing)
    ]
    before, then, rose = _rise(points, best, begin, bend) if begin < trained else (None, None, None)
    return Fall(
        epoch=points[begin].epoch if begin < trained else None,
        best=values[best],
        best_epoch=points[best].epoch,
        lowest=_finite(values[lowest]),
        lowest_epoch=points[lowest].epoch if lowest < trained else None,
        epochs=min(end, trained) - min(begin, trained),
        recovered=points[end].epoch if end < trained else None,
        repaired=end == trained < len(values),
        lost=points[lost[0]].epoch if lost else None,
        loss_before=_finite(before),
        loss_then=_finite(then),
        loss_rose=rose,
    )


def _rise(
    points: Sequence[Point], best: int, fall: int, bend: float
) -> tuple[float | None, float | None, bool | None]:
    """Return the training loss before a fall and then, and whether it rose.

    What is asked is whether the network that trains was still as good as when the value was best.
    So the loss of then is compared with the lowest since the best epoch: neither what a warm-up did
    before nor the step in which mosaic ends counts, and a loss that creeps up over many epochs
    does. The first epoch of a fall may have broken at its end, the next began broken: the higher
    of the two counts, and no later one, which would be an effect.

    A rise is one by more than a tenth, since a change of the loss that small halves no mAP: where
    trainings truly lost half of it, the loss was higher by a sixth or more, the first epoch's mean
    included (``docs/collapse.md``). It is also one by more than the curve's own noise, three times
    its usual `_bend` (five standard deviations of independent noise).
    """
    before = [p.loss for p in points[best:fall] if p.loss is not None and math.isfinite(p.loss)]
    then = [p.loss for p in points[fall : fall + 2] if p.loss is not None]
    if not then:
        return min(before, default=None), None, None
    if not all(map(math.isfinite, then)):
        return min(before, default=None), math.nan, True
    # In the first epoch there is nothing before; that epoch's mean began before the fall.
    lowest, highest = min(before or then[:1]), max(then)
    return lowest, highest, rises(lowest, highest, bend) or (False if before else None)


def rises(before: float, then: float, bend: float = 0.0) -> bool:
    """Return whether one training loss is clearly above another, given how much it usually bends.

    One that is not a number is.
    """
    return not then - before <= max(_LEAST_RISE, _USUAL_BENDS * bend) * abs(before)


def _bend(points: Sequence[Point], stretches: Sequence[tuple[int, int, int]]) -> float:
    """Return how much the training loss usually bends outside of falls, its noise.

    That is the median size of its second difference as a share of the loss: a steady descent has
    none, and of the steps in which a warm-up or mosaic ends there are few.
    """
    losses = [p.loss if p.loss is not None and math.isfinite(p.loss) else None for p in points]
    for _, begin, end in stretches:
        losses[begin:end] = [None] * len(losses[begin:end])
    bends = [
        abs((before - 2 * loss + after) / loss)
        for before, loss, after in zip(losses, losses[1:], losses[2:], strict=False)
        if before is not None and loss and after is not None
    ]
    return median(bends or [0.0])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
