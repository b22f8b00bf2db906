"""Charts as geometry: where ticks, points and labels go; ``charts.svg.jinja`` draws them.

Every chart carries its numbers as a table too, for readers who do not see the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qatval.report.drawing import WIDTH, Chart, Curve, Mark, Segment, Style, Tick

_LETTER = 6.6  # average width of a digit at the drawings' font size
_BOLD = 8.4  # and of a letter of a name
_LABEL = 20  # letters of a name on a line


@dataclass(frozen=True)
class Series:
    """Values over epochs; a None is a gap."""

    label: str
    style: Style
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Level:
    """A horizontal line with a meaning."""

    label: str
    value: float
    kind: str


@dataclass(frozen=True)
class Row:
    """One line of a dot chart.

    Attributes:
        dots: Value, title, whether it is crossed out, and a key: dots of equal key in
            neighbouring rows are joined, those without a key are not.
        mean: Drawn as a bar across the line.
        interval: Drawn as a bar along the line.
    """

    label: str
    style: Style
    dots: Sequence[tuple[float, str, bool, object]]
    mean: float | None
    interval: tuple[float, float] | None = None


def line_chart(
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_names: Mapping[float, str] | None = None,
    levels: Sequence[Level] = (),
    spans: Sequence[tuple[float, float]] = (),
    zero: bool = False,
    show: Callable[[float], str],
) -> Chart | None:
    """Draw values over epochs, None where nothing was measured.

    Args:
        title, description: Of the chart, for every reader.
        series: Those without a measured point are left out.
        x_names: What single positions are called instead of the number of an epoch.
        levels: Horizontal lines.
        spans: First and last of epochs that a bar along the axis marks.
        zero: Whether the vertical axis starts at 0.
        show: How a value is written.
    """
    series = [s for s in series if any(y is not None for _, y in s.points)]
    if not series:
        return None
    bottom, named = 196.0, x_names or {}
    measured = [(x, y) for s in series for x, y in s.points if y is not None]
    values = [y for _, y in measured] + [level.value for level in levels]
    left, y_at, y_ticks = _y_axis([*values, 0.0] if zero else values, bottom)
    xs = sorted({x for s in series for x, _ in s.points})
    x_at = _scale(xs[0] - 0.3, xs[-1] + 0.3, left, Chart.right)
    curves, marks = [], []
    for s in series:
        path, pen = "", "M"
        for x, y in s.points:
            if y is not None:
                path += f"{pen}{x_at(x):.1f} {y_at(y):.1f}"
                where = named.get(x, f"epoch {x:g}")
                marks.append(Mark(x_at(x), y_at(y), s.style, f"{s.label}, {where}: {show(y)}"))
            pen = "M" if y is None else "L"
        curves.append(Curve(s.label, s.style, path))
    numbered = [x for x in xs if x not in named]
    step = math.ceil(len(numbered) / 10) or 1
    x_ticks = [*((x, f"{x:g}") for x in numbered[::step]), *named.items()]
    by_x = [dict(s.points) for s in series]
    return Chart(
        title,
        description,
        left,
        bottom,
        x_ticks=[Tick(x_at(x), name) for x, name in x_ticks],
        y_ticks=y_ticks,
        x_label="epoch",
        header=["epoch", *(s.label for s in series)],
        rows=[
            [named.get(x, f"{x:g}"), *("–" if (y := ys.get(x)) is None else show(y) for ys in by_x)]
            for x in xs
        ],
        curves=curves,
        segments=[
            *_levels(levels, y_at, left, measured),
            *(
                Segment(x_at(a - 0.3), bottom - 3, x_at(b + 0.3), bottom - 3, "fall")
                for a, b in spans
            ),
        ],
        marks=marks,
    )


def dot_chart(
    title: str,
    description: str,
    rows: Sequence[Row],
    *,
    x_label: str,
    levels: Sequence[Level] = (),
    header: Sequence[str],
    table: Sequence[Sequence[str]],
) -> Chart | None:
    """Draw a line of dots per row, e.g. a method's value with each seed; None without rows.

    Args:
        title, description: Of the chart, for every reader.
        rows: Top to bottom.
        x_label: What the horizontal axis measures.
        levels: Vertical lines with a meaning.
        header, table: The numbers.
    """
    if not rows:
        return None
    pitch, top = 38.0, Chart.top + 16.0 * len(levels)
    bottom = top + pitch * len(rows)
    names = [_lines(row.label) for row in rows]
    left, right = 12 + _BOLD * max(len(line) for lines in names for line in lines), WIDTH - 14.0
    values = [level.value for level in levels]
    for row in rows:
        values += [value for value, *_ in row.dots] + [*(row.interval or ())]
    low, high = _span(values)
    x_at = _scale(low, high, left, right)
    y_of = [top + pitch * (index + 0.5) for index in range(len(rows))]
    segments = [*_posts(levels, x_at, top, bottom, (left + right) / 2), *_joins(rows, y_of, x_at)]
    marks = []
    for row, y in zip(rows, y_of, strict=True):
        if row.interval is not None:
            start, end = map(x_at, row.interval)
            segments.append(Segment(start, y, end, y, f"interval {row.style.hue}"))
        if row.mean is not None:
            x = x_at(row.mean)
            segments.append(Segment(x, y - 13, x, y + 13, f"mean {row.style.hue}"))
        for value, name, crossed, _ in row.dots:
            marks.append(Mark(x_at(value), y, None if crossed else row.style, name))
    return Chart(
        title,
        description,
        left,
        bottom,
        x_ticks=[Tick(x_at(value), f"{value:g}") for value in _nice(low, high, 4)],
        y_ticks=[Tick(y, *lines) for lines, y in zip(names, y_of, strict=True)],
        x_label=x_label,
        header=header,
        rows=table,
        top=top,
        right=right,
        rules=False,
        segments=segments,
        marks=marks,
    )


def range_chart(
    title: str,
    description: str,
    ranges: Sequence[tuple[str, float, float]],
    *,
    unchanged: float = 0.0,
    header: Sequence[str],
    show: Callable[[float], str],
    table: Sequence[Sequence[str]] | None = None,
) -> Chart | None:
    """Draw a vertical bar per layer, in the order of the network; None without layers.

    Args:
        title, description: Of the chart, for every reader.
        ranges: Name of each layer and both ends of its bar.
        unchanged: Where a bar says that nothing happened.
        header: Of the table.
        show: How an end is written.
        table: The numbers, by default the ends of the bars.
    """
    if not ranges:
        return None
    bottom, right = 156.0, Chart.right
    ends = [end for _, *both in ranges for end in both]
    left, y_at, y_ticks = _y_axis([unchanged, *ends], bottom)
    x_at = _scale(-1.0, float(len(ranges)), left, right)
    return Chart(
        title,
        description,
        left,
        bottom,
        x_ticks=[],
        y_ticks=y_ticks,
        x_label=f"{len(ranges)} layers, input to output",
        header=header,
        rows=table or [[name, show(a), show(b)] for name, a, b in ranges],
        segments=[
            Segment(left, y_at(unchanged), right, y_at(unchanged), "zero"),
            *(
                # a bar of no length would be invisible
                Segment(x_at(i), round(y_at(a) + 0.8, 1), x_at(i), round(y_at(b) - 0.8, 1), "range")
                for i, (_, a, b) in enumerate(ranges)
            ),
        ],
    )


def _y_axis(
    values: Sequence[float], bottom: float
) -> tuple[float, Callable[[float], float], list[Tick]]:
    """Return where the drawing begins beside the axis' labels, its scale and its ticks."""
    low, high = _span(values)
    y_at = _scale(low, high, bottom, Chart.top)
    ticks = [Tick(y_at(value), f"{value:g}") for value in _nice(low, high)]
    return 12 + _LETTER * max(len(tick.label) for tick in ticks), y_at, ticks


def _levels(
    levels: Iterable[Level],
    y_at: Callable[[float], float],
    left: float,
    measured: Sequence[tuple[float, float]],
) -> Iterable[Segment]:
    """Draw levels, each labelled where it is farthest from what was measured."""
    first, last = min(measured)[1], max(measured)[1]
    for level in levels:
        at_left = abs(first - level.value) > abs(last - level.value)
        below = (first if at_left else last) > level.value > 0
        y, right = y_at(level.value), Chart.right
        label_at = (left + 3 if at_left else right), y + (12 if below else -4)
        anchor = "start" if at_left else "end"
        yield Segment(left, y, right, y, level.kind, level.label, *label_at, anchor)


def _posts(
    levels: Sequence[Level],
    x_at: Callable[[float], float],
    top: float,
    bottom: float,
    middle: float,
) -> Iterable[Segment]:
    # the innermost lowest: no post then runs through the label of another
    inwards = sorted(levels, key=lambda level: abs(x_at(level.value) - middle))
    for above, level in enumerate(inwards):
        x, label_y = x_at(level.value), top - 8 - 16 * above
        room = _LETTER * len(level.label)
        anchor, label_x = ("start", min(x, WIDTH - room)) if x < middle else ("end", max(x, room))
        yield Segment(x, label_y + 4, x, bottom, level.kind, level.label, label_x, label_y, anchor)


def _joins(
    rows: Sequence[Row], y_of: Sequence[float], x_at: Callable[[float], float]
) -> Iterable[Segment]:
    for (row, y), (below, y_below) in pairwise(zip(rows, y_of, strict=True)):
        starts = {key: value for value, _, _, key in row.dots if key is not None}
        for value, _, _, key in below.dots:
            if key in starts:
                yield Segment(x_at(starts[key]), y, x_at(value), y_below, "join")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    factor = (end - start) / ((high - low) or 1.0)  # numbers that no float tells apart
    return lambda value: round(start + (value - low) * factor, 1)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin, size = 0.08 * (high - low), max(1.0, abs(low), abs(high))
    if margin < 1e-6 * size:  # one value, or as good as one
        margin = 0.01 * size
    return (low if low == 0.0 else low - margin), high + margin


def _nice(low: float, high: float, wanted: int = 5) -> list[float]:
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + index) * step, 12) for index in range(count)]


def _lines(label: str) -> list[str]:
    """Break a long name before what it is set against, and cut what is still too long."""
    lines = [label]
    for mark in ("− ", "net of "):
        first, found, second = label.partition(f" {mark}")
        if found and len(label) > _LABEL:
            lines = [first, f"{mark}{second}"]
    return [line if len(line) <= _LABEL else f"{line[: _LABEL - 1]}…" for line in lines]
