"""What a chart is made of once it is laid out: positions, lines and labels, and its numbers.

Lengths are in the units of the drawing, whose width is `WIDTH`. Methods are told apart by `Style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qatval.analysis.document import Role

WIDTH = 400.0

_CROSS = "m-5-5l10 10m0-10l-10 10"
_SHAPES = {
    "circle": "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "square": "m-4-4h8v8h-8z",
    "diamond": "m0-5.8l5.8 5.8l-5.8 5.8l-5.8-5.8z",
    "triangle up": "m0-5.5l5.5 9.5h-11z",
    "triangle down": "m0 5.5l5.5-9.5h-11z",
    "plus": "m-1.9-5.3h3.8v3.4h3.4v3.8h-3.4v3.4h-3.8v-3.4h-3.4v-3.8h3.4z",
    "star": "m0-6.4l1.8 4.2 4.4.3-3.4 2.9 1 4.4-3.8-2.4-3.8 2.4 1-4.4-3.4-2.9 4.4-.3z",
}
# As many as report.css has. The counts share no divisor, so that equal pairs come late.
_COLOURS, _DASHES = 6, 5


@dataclass(frozen=True)
class Style:
    """How a method is drawn, so that colour is never the only difference.

    Attributes:
        colour, dash: Numbers of a colour and of a line pattern in ``report.css``.
        marker: About the current point, as the data of a path.
        hollow: Whether markers are hollow and lines thin, both greyish, as those of controls.
    """

    colour: int
    marker: str
    dash: int
    hollow: bool = False

    @property
    def hue(self) -> str:
        """Return the CSS classes that give a line or a marker its colour."""
        return f"c{self.colour}{' hollow' if self.hollow else ''}"


SERIES = (
    Style(_COLOURS, _SHAPES["circle"], 0),
    Style(_COLOURS, _SHAPES["square"], 1, hollow=True),
)
"""Of two lines that belong to no method, in grey."""


def styles(roles: Mapping[str, Role]) -> dict[str, Style]:
    """Give each method of a report a style of its own.

    Args:
        roles: Of all methods, in the order in which a reader meets them.
    """
    return {
        name: _style(index, hollow=role == "control")
        for role in ("method", "control")
        for index, name in enumerate(name for name, own in roles.items() if own == role)
    }


def _style(index: int, *, hollow: bool) -> Style:
    # of the first 28 no two are alike without their colours either, of the first 168 with them
    shift = index + index // (_COLOURS * len(_SHAPES))
    dash = 1 + shift % (_DASHES - 1) if hollow else shift % _DASHES
    return Style(index % _COLOURS, [*_SHAPES.values()][index % len(_SHAPES)], dash, hollow)


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
        style: None for a mark that is crossed out.
        title: What hovering and screen readers say.
    """

    x: float
    y: float
    style: Style | None
    title: str

    @property
    def path(self) -> str:
        """Return its outline as the data of a path."""
        return f"M{self.x:g} {self.y:g}{_CROSS if self.style is None else self.style.marker}"


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
    style: Style
    path: str


@dataclass(frozen=True)
class Chart:
    """A drawing with its axes, and the same numbers as a table."""

    title: str
    description: str
    left: float
    bottom: float
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_label: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    top: float = 14.0
    right: float = WIDTH - 12.0
    rules: bool = True
    curves: Sequence[Curve] = ()
    segments: Sequence[Segment] = ()
    marks: Sequence[Mark] = ()
    width: float = WIDTH
