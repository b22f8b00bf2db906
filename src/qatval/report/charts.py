"""Charts as geometry: where ticks, points and labels go; ``charts.svg.jinja`` draws them.

Every chart carries its numbers as a table too, for readers who do not see the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
        dots: Value, title, whether it is crossed out, and a key: dots of equal key are joined.
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
    x_label: str = "epoch",
    x_names: dict[float, str] | None = None,
    levels: Sequence[Level] = (),
    zero: bool = False,
    show: Callable[[float], str],
) -> Chart:
    """Draw values over epochs.

    Args:
        title, description: Of the chart, for every reader.
        series: At least one measured point in all of them together.
        x_label: What the horizontal axis counts.
        x_names: Names of single positions on it, instead of numbers.
        levels: Horizontal lines.
        zero: Whether the vertical axis starts at 0.
        show: How a value is written.
    """
    measured = [(x, y) for s in series for x, y in s.points if y is not None]
    values = [y for _, y in measured] + [level.value for level in levels]
    low, high = _span([*values, *([0.0] if zero else [])])
    xs = sorted({x for s in series for x, _ in s.points})
    labels = [Tick(value, f"{value:g}") for value in _nice(low, high)]
    left = 12 + _LETTER * max(len(tick.label) for tick in labels)
    right, top, bottom, height = WIDTH - 12.0, 14.0, 196.0, 232.0
    x_at = _scale(xs[0] - 0.3, xs[-1] + 0.3, left, right)
    y_at = _scale(low, high, bottom, top)
    curves, marks = [], []
    for s in series:
        pieces, pen = [], "M"
        for x, y in s.points:
            if y is None:
                pen = "M"
                continue
            pieces.append(f"{pen}{x_at(x):.1f} {y_at(y):.1f}")
            pen = "L"
            where = (x_names or {}).get(x, f"{x_label} {x:g}")
            marks.append(Mark(x_at(x), y_at(y), s.style, f"{s.label}, {where}: {show(y)}"))
        curves.append(Curve(s.label, s.style, "".join(pieces)))
    named = x_names or {}
    whole = [x for x in xs if x not in named]
    step = max(1, math.ceil(len(whole) / 10))
    x_ticks = [Tick(x_at(x), f"{x:g}") for x in whole[::step]]
    x_ticks += [Tick(x_at(x), name) for x, name in named.items()]
    by_x = [dict(s.points) for s in series]
    return Chart(
        title=title,
        description=description,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=x_ticks,
        y_ticks=[Tick(y_at(tick.at), tick.label) for tick in labels],
        x_label=x_label,
        header=[x_label, *(s.label for s in series)],
        rows=[
            [named.get(x, f"{x:g}"), *("–" if (y := ys.get(x)) is None else show(y) for ys in by_x)]
            for x in xs
        ],
        curves=curves,
        segments=list(_levels(levels, y_at, left, right, measured)),
        marks=marks,
    )


def dot_chart(
    title: str,
    description: str,
    rows: Sequence[Row],
    *,
    x_label: str,
    levels: Sequence[Level] = (),
    join: bool = False,
    header: Sequence[str],
    table: Sequence[Sequence[str]],
) -> Chart:
    """Draw a line of dots per row, e.g. a method's value with each seed.

    Args:
        title, description: Of the chart, for every reader.
        rows: Top to bottom.
        x_label: What the horizontal axis measures.
        levels: Vertical lines with a meaning.
        join: Whether dots of equal key in neighbouring rows are joined.
        header, table: The numbers.
    """
    pitch, top = 38.0, 14.0 + 16.0 * len(levels)
    bottom = top + pitch * len(rows)
    names = [_lines(row.label) for row in rows]
    longest = max(len(line) for lines in names for line in lines)
    left, right = 12 + _BOLD * longest, WIDTH - 14.0
    values = [level.value for level in levels]
    for row in rows:
        values += [dot[0] for dot in row.dots]
        values += [] if row.interval is None else list(row.interval)
    low, high = _span(values)
    x_at = _scale(low, high, left, right)
    y_of = [top + pitch * (index + 0.5) for index in range(len(rows))]
    segments = list(_posts(levels, x_at, top, bottom, (left + right) / 2))
    if join:
        segments += _joins(rows, y_of, x_at)
    marks: list[Mark] = []
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
        title=title,
        description=description,
        height=bottom + 36,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[Tick(x_at(value), f"{value:g}") for value in _nice(low, high, 4)],
        y_ticks=[Tick(y, *lines) for lines, y in zip(names, y_of, strict=True)],
        x_label=x_label,
        header=header,
        rows=table,
        rules=False,
        segments=segments,
        marks=marks,
    )


def range_chart(
    title: str,
    description: str,
    ranges: Sequence[tuple[str, float, float]],
    *,
    unchanged: float,
    header: Sequence[str],
    show: Callable[[float], str],
    table: Sequence[Sequence[str]] | None = None,
) -> Chart:
    """Draw a vertical bar per layer, in the order of the network, about what changes nothing.

    Args:
        title, description: Of the chart, for every reader.
        ranges: Name of each layer and both ends of its bar.
        unchanged: Where a bar says that nothing happened.
        header: Of the table.
        show: How an end is written.
        table: The numbers, by default the ends of the bars.
    """
    low, high = _span([unchanged, *(v for _, a, b in ranges for v in (a, b))])
    labels = [Tick(value, f"{value:g}") for value in _nice(low, high)]
    left = 12 + _LETTER * max(len(tick.label) for tick in labels)
    right, top, bottom = WIDTH - 12.0, 14.0, 156.0
    x_at = _scale(-1.0, float(len(ranges)), left, right)
    y_at = _scale(low, high, bottom, top)
    return Chart(
        title=title,
        description=description,
        height=bottom + 36,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[],
        y_ticks=[Tick(y_at(tick.at), tick.label) for tick in labels],
        x_label=f"{len(ranges)} layers, input to output",
        header=header,
        rows=table or [[name, show(a), show(b)] for name, a, b in ranges],
        segments=[
            *_levels([Level("", unchanged, "zero")], y_at, left, right),
            *(
                # a bar of no length would be invisible
                Segment(x_at(i), round(y_at(a) + 0.8, 1), x_at(i), round(y_at(b) - 0.8, 1), "range")
                for i, (_, a, b) in enumerate(ranges)
            ),
        ],
    )


def _levels(
    levels: Iterable[Level],
    y_at: Callable[[float], float],
    left: float,
    right: float,
    measured: Sequence[tuple[float, float]] = ((0.0, 0.0),),
) -> Iterable[Segment]:
    """Draw levels, each labelled where it is farthest from what was measured."""
    ends = [y for _, y in (min(measured), max(measured))]
    for level in levels:
        distances = [abs(y - level.value) for y in ends]
        at_left = distances[0] > distances[1]
        below = ends[0 if at_left else 1] > level.value > 0
        y = y_at(level.value)
        yield Segment(
            left,
            y,
            right,
            y,
            level.kind,
            level.label,
            left + 3 if at_left else right,
            y + (12 if below else -4),
            "start" if at_left else "end",
        )


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
) -> list[Segment]:
    joined = []
    for (row, y), (below, y_below) in zip(
        zip(rows, y_of, strict=True), list(zip(rows, y_of, strict=True))[1:], strict=False
    ):
        starts = {dot[3]: dot[0] for dot in row.dots}
        joined += [
            Segment(x_at(starts[dot[3]]), y, x_at(dot[0]), y_below, "join")
            for dot in below.dots
            if dot[3] in starts
        ]
    return joined


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    factor = (end - start) / (high - low)
    return lambda value: round(start + (value - low) * factor, 1)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low)
    if margin < 1e-6:  # one value, or as good as one
        margin = 0.01
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
