"""What a chart is made of once it is laid out: positions, lines and labels, and its numbers.

Lengths are in the units of the drawing, whose width is `WIDTH`; a style number stands for a colour
together with a marker shape and a dash pattern, so that colour is never the only difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH = 400.0


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis; a long label has a second line."""

    at: float
    label: str
    second: str = ""


@dataclass(frozen=True)
class Mark:
    """A measured point.

    Attributes:
        style: Selects colour and shape; None for a mark that is crossed out.
        title: What hovering and screen readers say.
    """

    x: float
    y: float
    style: int | None
    title: str


@dataclass(frozen=True)
class Segment:
    """A straight line, e.g. a level or an interval, with an optional label."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Curve:
    """A line through points; its legend entry is its label."""

    label: str
    style: int
    path: str


@dataclass(frozen=True)
class Chart:
    """A drawing with its axes, and the same numbers as a table."""

    title: str
    description: str
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_label: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    rules: bool = True
    curves: Sequence[Curve] = ()
    segments: Sequence[Segment] = ()
    marks: Sequence[Mark] = ()
    width: float = field(default=WIDTH)
