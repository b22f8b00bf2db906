"""Trajectories of trainings that qatval did not run: Ultralytics' ``results.csv``.

Its columns differ between versions, tasks and families of detectors; what they share is ``epoch``,
losses below ``train/`` and metrics below ``metrics/``.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qatval.core.errors import QatvalError, quoted
from qatval.core.files import read_regular
from qatval.core.formatting import count
from qatval.core.stability import PRIMARY_METRIC
from qatval.core.trajectory import Point, training_loss

METRICS = (
    PRIMARY_METRIC,
    "metrics/mAP50-95(P)",
    "metrics/mAP50-95(M)",
    "metrics/accuracy_top1",
    "metrics/mAP_0.5:0.95",
)
"""What is judged, the first that a file has: boxes, poses, masks, classes, boxes of YOLOv5."""

_EXPECTED = "the results.csv of an Ultralytics training"
_MOST_BYTES = 16 * 2**20  # 50,000 epochs
_MOST_EPOCHS = 10**9


@dataclass(frozen=True)
class ForeignCurve:
    """A trajectory as a file has it.

    Attributes:
        points: Its epochs, counted from 1.
        metric: Column of the value.
        losses: Columns that the training loss is the sum of.
        notes: What was left out, or read in another way than it is written.
    """

    points: Sequence[Point]
    metric: str
    losses: Sequence[str]
    notes: Sequence[str]


def read_curve(path: Path) -> ForeignCurve:
    """Read Ultralytics' ``results.csv``.

    Where a training was resumed, or begun anew, in the same file, an epoch that is recorded again
    takes the place of the earlier one and of all after it.

    Raises:
        QatvalError: One line that says what of the file cannot be read, and where.
    """
    content = read_regular(path, _MOST_BYTES, expected=_EXPECTED)
    try:
        text = content.decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise QatvalError(f"{path}: is no CSV in UTF-8 ({error}); expected {_EXPECTED}") from error
    if not rows:
        raise QatvalError(f"{path}: is empty; expected {_EXPECTED}")
    (_, header), *rows = rows
    metric = next((name for name in METRICS if name in header), None)
    if "epoch" not in header or metric is None:
        missing = "'epoch'" if "epoch" not in header else f"of {', '.join(METRICS)}"
        raise QatvalError(f"{path}: has no column {missing}; expected {_EXPECTED}")
    losses = tuple(name for name in dict.fromkeys(header) if name.startswith("train/"))
    points: list[Point] = []
    again = blank = 0
    notes = []
    for number, row in rows:
        if row == header:  # a training that was begun anew
            continue
        try:
            epoch, value, loss = _epoch(_cells(header, row), metric, losses)
        except ValueError as error:
            if number == rows[-1][0] and not text.endswith(("\n", "\r")):
                notes.append("the last line is cut off and left out")
                break
            raise QatvalError(f"{path}, line {number}: {error}") from error
        while points and points[-1].epoch >= epoch:
            points.pop()
            again += 1
        if value is None:
            blank += 1
        else:
            points.append(Point(epoch, value, loss))
    if not points:
        raise QatvalError(f"{path}: holds no epoch with {metric}; expected {_EXPECTED}")
    if points[0].epoch == 0:
        points = [point._replace(epoch=point.epoch + 1) for point in points]
        notes.append("the file counts epochs from 0, here they count from 1")
    if again:
        notes.append(f"{count(again, 'epoch')} recorded again later: the later record counts")
    if blank:
        notes.append(f"{count(blank, 'epoch')} without a value left out")
    return ForeignCurve(points, metric, losses, notes)


def _cells(header: Sequence[str], row: Sequence[str]) -> Mapping[str, str]:
    if len(row) != len(header):
        raise ValueError(f"has {count(len(row), 'cell')}, the header has {len(header)}")
    return dict(zip(header, row, strict=True))


def _epoch(
    cells: Mapping[str, str], metric: str, losses: Sequence[str]
) -> tuple[int, float | None, float | None]:
    """Return an epoch's number, its value, and its loss; None for what is not recorded.

    Raises:
        ValueError: What is none of these, in a few words.
    """
    epoch = _number("epoch", cells)
    if epoch is None or not (0 <= epoch < _MOST_EPOCHS and epoch == int(epoch)):
        raise ValueError(f"epoch is {quoted(cells['epoch'])}, expected a whole number")
    value = _number(metric, cells)
    if value is not None and math.isfinite(value) and not 0.0 <= value <= 1.0:
        raise ValueError(f"{metric} is {value:g}, expected 0 to 1")
    parts = {name: _number(name, cells) for name in losses}
    loss = None if None in parts.values() else training_loss(parts)
    return int(epoch), value, loss


def _number(name: str, cells: Mapping[str, str]) -> float | None:
    text = cells[name]
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"{quoted(name)} is {quoted(text)}, expected a number") from None
