"""Where the shapes of the embedded dataset lie: geometry only, the same on every machine.

Coordinates are integers in sixteenths of a pixel, drawn from a numpy `Generator` and rasterised
with integer arithmetic here, not by a graphics library. Boxes, areas, segmentations and the
choice which shapes are too hidden to keep therefore never depend on a library's version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

UNIT = 16  # coordinate steps per pixel
SAMPLES = 4  # coverage samples per pixel and axis; divides UNIT

Polygon = NDArray[np.int64]  # (K, 2) x, y in 1/UNIT px
Mask = NDArray[np.bool_]  # (height, width)

CLASS_NAMES = ("circle", "square", "triangle", "cross", "ring", "star")

SHORT_SIDES = (1.0, 5 / 6, 3 / 4, 3 / 4, 2 / 3)
EMPTY_SHARE = 0.05
CROWD_SHARE = 0.04
MIN_VISIBLE = 0.65
MIN_INSIDE = 0.7
PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class Item:
    """One annotated thing: a shape, or a crowd of small shapes of one class."""

    class_index: int
    polygons: tuple[Polygon, ...]  # inside the image
    mask: Mask  # as if nothing lay in front of it
    crowd: bool = False

    def box(self) -> tuple[float, float, float, float]:
        """The tight box: x, y of the top left corner, width and height in px."""
        corners = np.concatenate(self.polygons)
        (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return x0 / UNIT, y0 / UNIT, (x1 - x0) / UNIT, (y1 - y0) / UNIT


@dataclass(frozen=True)
class Scene:
    """What one image shows, back to front."""

    height: int
    width: int
    clutter: tuple[Polygon, ...]  # belongs to no class
    items: tuple[Item, ...]


def compose_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draw the scene of one image whose long side is `size` px."""
    short = round(size * SHORT_SIDES[int(rng.integers(len(SHORT_SIDES)))])
    height, width = (size, short) if rng.random() < 0.4 else (short, size)
    clutter = tuple(_clutter(rng, height, width) for _ in range(int(rng.integers(0, 3))))
    kind = float(rng.random())
    if kind < EMPTY_SHARE:
        return Scene(height, width, clutter, ())
    stack = _Stack(height, width)
    if kind > 1 - CROWD_SHARE:
        stack.place(_crowd(rng, height, width))
    for _ in range(int(rng.integers(2, 9))):
        for _ in range(PLACEMENT_TRIES):
            if stack.place(_shape(rng, height, width)):
                break
    return Scene(height, width, clutter, tuple(stack.items))


def coverage(polygon: Polygon, height: int, width: int) -> NDArray[np.uint8]:
    """How much of each pixel, 0 to SAMPLES**2, the polygon covers (even-odd rule)."""
    result = np.zeros((height, width), np.uint8)
    (x0, y0), (x1, y1) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
    left, top = max(x0 // UNIT, 0), max(y0 // UNIT, 0)
    right, bottom = min(-(-x1 // UNIT), width), min(-(-y1 // UNIT), height)
    if left >= right or top >= bottom:
        return result
    step = UNIT // SAMPLES
    rows = np.arange(top * SAMPLES, bottom * SAMPLES) * step + step // 2
    columns = (right - left) * SAMPLES
    (x0, y0), (x1, y1) = polygon.T, _next(polygon).T
    crosses = (y0 <= rows[:, None]) != (y1 <= rows[:, None])
    row, edge = np.nonzero(crosses)
    x = x0[edge] + (x1 - x0)[edge] * (rows[row] - y0[edge]) // (y1 - y0)[edge]
    first = np.clip(-((left * UNIT + step // 2 - x) // step), 0, columns)
    crossings = np.zeros((len(rows), columns + 1), np.uint8)
    np.add.at(crossings, (row, first), 1)
    # A sample is inside if the number of crossings to its left is odd: the sum of their last bits.
    inside = np.bitwise_xor.accumulate(crossings[:, :-1], axis=1) & 1
    each = range(SAMPLES)
    across = reduce(np.add, (inside[:, sample::SAMPLES] for sample in each))
    result[top:bottom, left:right] = reduce(np.add, (across[sample::SAMPLES] for sample in each))
    return result


def _next(polygon: Polygon) -> Polygon:
    """Return the point that follows each point."""
    return np.concatenate([polygon[1:], polygon[:1]])


def polygon_area(polygon: Polygon) -> float:
    """The enclosed area in square px."""
    (x, y), (next_x, next_y) = polygon.T, _next(polygon).T
    twice = int(np.sum(x * next_y - y * next_x))
    return abs(twice) / (2 * UNIT * UNIT)


class _Stack:
    """Items laid over each other, none hiding too much of an earlier one."""

    def __init__(self, height: int, width: int) -> None:
        self.items: list[Item] = []
        self._top = np.full((height, width), -1)

    def place(self, item: Item | None) -> bool:
        if item is None:
            return False
        hidden = np.bincount(self._top[item.mask & (self._top >= 0)], minlength=len(self.items))
        for index, earlier in enumerate(self.items):
            visible = int(np.sum(self._top == index)) - int(hidden[index])
            if visible < MIN_VISIBLE * int(earlier.mask.sum()):
                return False
        self._top[item.mask] = len(self.items)
        self.items.append(item)
        return True


def _shape(rng: np.random.Generator, height: int, width: int) -> Item | None:
    size = max(height, width)
    # Log-uniform: as many shapes of 15 to 30 px as of 30 to 60 px in an image of 128 px.
    radius = size * 0.06 * 4.0 ** float(rng.random())
    class_index = int(rng.integers(len(CLASS_NAMES)))
    centre = float(rng.random()) * width, float(rng.random()) * height
    return _item(class_index, [_outline(rng, class_index, centre, radius)], height, width)


def _crowd(rng: np.random.Generator, height: int, width: int) -> Item | None:
    size = max(height, width)
    class_index = int(rng.integers(len(CLASS_NAMES)))
    x, y = (0.3 + 0.4 * float(rng.random())) * width, (0.3 + 0.4 * float(rng.random())) * height
    outlines = []
    for _ in range(int(rng.integers(7, 13))):
        right, down = ((float(rng.random()) - 0.5) * share * size for share in (0.4, 0.25))
        centre = x + right, y + down
        radius = size * (0.03 + 0.02 * float(rng.random()))
        outlines.append(_outline(rng, class_index, centre, radius))
    return _item(class_index, outlines, height, width, crowd=True)


def _item(
    class_index: int, outlines: Sequence[Polygon], height: int, width: int, *, crowd: bool = False
) -> Item | None:
    """Cut the outlines at the image border; None when too little of them is left."""
    polygons = [_clip(outline, height, width) for outline in outlines]
    kept = [polygon for polygon in polygons if len(polygon) >= 3]
    if sum(map(polygon_area, kept)) < MIN_INSIDE * sum(map(polygon_area, outlines)):
        return None
    mask = np.zeros((height, width), np.bool_)
    for polygon in kept:
        mask |= coverage(polygon, height, width) >= SAMPLES**2 // 2
    return Item(class_index, tuple(kept), mask, crowd) if mask.any() else None


def _outline(
    rng: np.random.Generator, class_index: int, centre: tuple[float, float], radius: float
) -> Polygon:
    points = _UNIT_OUTLINES[class_index]
    stretch = 0.82 + 0.36 * float(rng.random())
    # Upright give or take 20 degrees, as most things in photographs are.
    turn = math.radians(40 * float(rng.random()) - 20)
    return _transform(points * (stretch, 1 / stretch), centre, radius, turn)


def _clutter(rng: np.random.Generator, height: int, width: int) -> Polygon:
    """A bar, a splinter or a boulder: an outline the detector has to ignore."""
    size = max(height, width)
    centre = float(rng.random()) * width, float(rng.random()) * height
    radius = size * (0.05 + 0.3 * float(rng.random()))
    kind = int(rng.integers(3))
    if kind == 0:
        points = np.array([(-1, -0.07), (1, -0.07), (1, 0.07), (-1, 0.07)], np.float64)
    else:
        corners = 3 if kind == 1 else 7
        lengths = 0.35 + 0.65 * rng.random(corners)
        points = _polar(lengths, corners) * ((1.0, 0.35) if kind == 1 else (0.7, 0.5))
    return _transform(points, centre, radius, 2 * math.pi * float(rng.random()))


def _transform(
    points: NDArray[np.float64], centre: tuple[float, float], radius: float, turn: float
) -> Polygon:
    cos, sin = math.cos(turn), math.sin(turn)
    turned = points @ np.array([(cos, sin), (-sin, cos)])
    return np.asarray(np.rint((turned * radius + centre) * UNIT), np.int64)


def _clip(polygon: Polygon, height: int, width: int) -> Polygon:
    """Cut a polygon at the image border (Sutherland-Hodgman); may leave fewer than 3 points."""
    if (polygon >= 0).all() and (polygon <= (width * UNIT, height * UNIT)).all():
        return polygon
    points = [(int(x), int(y)) for x, y in polygon]
    for axis, limit, sign in ((0, 0, 1), (1, 0, 1), (0, width * UNIT, -1), (1, height * UNIT, -1)):
        kept: list[tuple[int, int]] = []
        for start, end in zip([*points[-1:], *points[:-1]], points, strict=True):
            start_inside = sign * (start[axis] - limit) >= 0
            end_inside = sign * (end[axis] - limit) >= 0
            if start_inside != end_inside:
                other = 1 - axis
                run, rise = end[axis] - start[axis], end[other] - start[other]
                cut = start[other] + rise * (limit - start[axis]) // run
                kept.append((limit, cut) if axis == 0 else (cut, limit))
            if end_inside:
                kept.append(end)
        points = kept
    return np.array(points, np.int64).reshape(-1, 2)


def _polar(lengths: NDArray[np.float64], corners: int) -> NDArray[np.float64]:
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)


def _unit_outlines() -> tuple[NDArray[np.float64], ...]:
    """One outline per class, about the origin, of comparable visual size."""
    circle = _polar(np.full(32, 0.92), 32)
    arm = 0.3
    quarter = np.array([(1, -arm), (1, arm), (arm, arm)])
    turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    hole = circle[::-1] * 0.58
    return (
        circle,
        np.array([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]),
        np.array([(0, -1), (0.95, 0.75), (-0.95, 0.75)]),
        np.concatenate([quarter @ turn for turn in turns]),
        # COCO polygons know no holes: a seam leads from the outer edge to the inner and back.
        np.concatenate([circle, circle[:1], hole[-1:], hole]),
        _polar(np.where(np.arange(10) % 2 == 0, 1.15, 0.5), 10)[:, ::-1] * (1, -1),
    )


_UNIT_OUTLINES = _unit_outlines()
