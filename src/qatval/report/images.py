"""Validation images with the ground truth and what each method found in them and missed.

A summary may be a stranger's, and what a report shows may be passed on. So a summary says no more
than which subset it is about, by the name of its cache entry, which is a digest of its content:
annotations and images are those that the cache on this machine has for it. Detections are read from
the run root alone.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

import msgspec

from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.errors import QatvalError
from qatval.core.files import inside, read_regular

if TYPE_CHECKING:
    from qatval.data.coco import AnnotationIndex
    from qatval.data.subset import Subset

EXAMPLES = 6
SCORE = 0.25
IOU = 0.5
_LONG_SIDE = 640  # px, enough for a panel on a screen of two pixels a px
_QUALITY = 80
_LETTERS = 24  # as high as a number that the image is wide
_MOST_SHIFTS = 20  # of a number that others lie under

_MOST_DETECTIONS_BYTES = 128 * 2**20  # 300 of each of COCO's 5,000 validation images
_MOST_IMAGE_BYTES = 64 * 2**20
_MOST_PIXELS = 100_000_000
_MOST_BOXES = 300  # of one image, as many as are scored
_KEY = re.compile("[0-9a-f]{32}")

Corners = tuple[float, float, float, float]
Kind = Literal["truth", "found", "false", "missed"]


@dataclass(frozen=True)
class Box:
    """A box as it is drawn: x, y of the top left corner, width, height in px of the image."""

    x: float
    y: float
    width: float
    height: float
    kind: Kind
    title: str


@dataclass(frozen=True)
class Panel:
    """One view of an image; its boxes are numbered in their order, from 1.

    Attributes:
        numbers_at: Where the number of each box begins, on its base line.
    """

    title: str
    caption: str
    boxes: Sequence[Box]
    numbers_at: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Example:
    """An image with its views.

    Attributes:
        key: The same for equal pictures, by which a page can hold them once.
        jpeg: The picture as a data URI.
        width, height: The original's in px.
        letter: Height of the numbers in the same unit.
    """

    image_id: int
    key: str
    jpeg: str
    width: int
    height: int
    letter: float
    panels: Sequence[Panel]


@dataclass(frozen=True)
class ExampleImages:
    """Some validation images, seen by the methods of one seed.

    Attributes:
        left_out: Why the detections of some runs are not among them, a line each.
    """

    seed: int
    examples: Sequence[Example]
    left_out: Sequence[str]


class _Detection(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: Corners
    score: float


def example_images(runs: Sequence[LoadedRun], cache_dir: Path | None = None) -> ExampleImages | str:
    """Choose images and read what the runs of one seed found in them.

    The images are spread evenly over those with at least one object, in order of their ids: nobody
    picked them.

    Args:
        runs: Comparable ones.
        cache_dir: Where the subsets are, None for the default cache.

    Returns:
        The images, or one line that says why there is none.
    """
    by_seed: dict[int, dict[str, tuple[LoadedRun, Path]]] = defaultdict(dict)
    left_out = []
    for run in runs:
        try:
            predictions = _located(run, run.summary.artifacts.predictions)
        except QatvalError as error:
            left_out.append(_without(run, error))
            continue
        if run.completed and predictions is not None:
            by_seed[run.seed].setdefault(run.method, (run, predictions))
    if not by_seed:
        nothing = "No run recorded its detections, or they are no longer where they were."
        return " ".join([nothing, *left_out[:1]])
    seed = max(by_seed, key=lambda seed: (len(by_seed[seed]), -seed))
    try:
        return _seen_by([*by_seed[seed].values()], left_out, cache_dir)
    except (QatvalError, OSError) as error:
        return f"The validation images cannot be shown: {error}"


def _seen_by(
    chosen: Sequence[tuple[LoadedRun, Path]], left_out: list[str], cache_dir: Path | None
) -> ExampleImages:
    from qatval.data.coco import read_annotations

    subset = _subset_of([run for run, _ in chosen], cache_dir)
    index, _ = read_annotations(subset.val_annotations)
    rows = _spread(index)
    shown = {int(index.image_ids[row]) for row in rows}
    detections = []
    for run, path in chosen:
        try:
            detections.append((run.method, _detections(path, shown)))
        except QatvalError as error:
            left_out.append(_without(run, error))
    if not detections:
        raise QatvalError(left_out[-1])
    examples = [_example(index, row, subset.val.image_dir, detections) for row in rows]
    return ExampleImages(chosen[0][0].seed, examples, left_out)


def _without(run: LoadedRun, error: QatvalError) -> str:
    return f"The detections of {run.run_id} are left out: {error}"


def _subset_of(runs: Sequence[LoadedRun], cache_dir: Path | None) -> Subset:
    """Open the first subset of some comparable runs that this machine's cache has."""
    from qatval.data.cache import Cache, DamagedError
    from qatval.data.subset import open_subset

    subsets = Cache(cache_dir).subsets
    keys = {PurePath(run.summary.artifacts.val_annotations or "").parent.name: None for run in runs}
    for key in filter(_KEY.fullmatch, keys):
        try:
            if (subsets / key).is_dir():
                return open_subset(subsets / key)
        except DamagedError:
            continue
    raise QatvalError(
        f"the runs' subset is not in the cache {subsets.parent}; name another with --cache-dir, or "
        "build it again with 'qatval dataset build'"
    )


def _spread(index: AnnotationIndex) -> list[int]:
    """Return the positions of some images with objects, evenly spread."""
    import numpy as np

    rows, objects = np.unique(index.owners[~index.crowds], return_counts=True)
    rows = rows[objects <= _MOST_BOXES]
    if not len(rows):
        raise QatvalError("no validation image has objects that could be told apart")
    places = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows)))
    return [int(row) for row in rows[places.round().astype(int)]]


def _detections(path: Path, shown: set[int]) -> dict[int, list[_Detection]]:
    """Read what was found in some images, the highest scores first.

    Raises:
        QatvalError: The file is none of detections, or larger than any is.
    """
    found: dict[int, list[_Detection]] = {image_id: [] for image_id in shown}
    content = read_regular(path, _MOST_DETECTIONS_BYTES, expected="detections")
    try:
        decoded = msgspec.json.decode(content, type=list[_Detection])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise QatvalError(f"{path} holds no detections ({error})") from error
    for detection in decoded:
        if detection.image_id in shown and detection.score >= SCORE:
            found[detection.image_id].append(detection)
    return {
        image_id: sorted(of_image, key=lambda d: -d.score)[:_MOST_BOXES]
        for image_id, of_image in found.items()
    }


def _located(run: LoadedRun, recorded: str | None) -> Path | None:
    """Find an artifact in the run root, which may have been moved since its path was recorded.

    Raises:
        QatvalError: The path leads out of the run root.
    """
    if recorded is None:
        return None
    written_in = run.summary.artifacts.run_root
    if Path(recorded).is_absolute() and Path(recorded).is_relative_to(written_in):
        recorded = str(Path(recorded).relative_to(written_in))
    place = inside(run.root, recorded)
    return place if os.path.lexists(place) else None


def _example(
    index: AnnotationIndex,
    row: int,
    folder: Path,
    detections: Iterable[tuple[str, Mapping[int, list[_Detection]]]],
) -> Example:
    image_id = int(index.image_ids[row])
    height, width = (int(side) for side in index.sizes[row])
    names = dict(zip(index.category_ids.tolist(), index.category_names, strict=True))
    own = ((index.owners == row) & ~index.crowds).nonzero()[0]
    truth = [
        Box(x, y, w, h, "truth", index.category_names[class_])
        for (x, y, w, h), class_ in zip(index.boxes[own].tolist(), index.classes[own], strict=True)
    ]
    letter = round(width / _LETTERS, 1)
    panels = [_panel("ground truth", formatting.count(len(truth), "object"), truth, letter)]
    for method, by_image in detections:
        found, caption = _matched(by_image[image_id], truth, names)
        panels.append(_panel(method, caption, found, letter))
    jpeg = _jpeg(folder / index.file_names[row])
    key = f"image-{hashlib.sha256(jpeg.encode()).hexdigest()[:12]}"
    return Example(image_id, key, jpeg, width, height, letter, panels)


def _panel(title: str, caption: str, boxes: Sequence[Box], letter: float) -> Panel:
    placed: list[tuple[float, float]] = []
    for box in boxes:
        x, y = max(box.x, 0.0) + letter / 5, max(box.y, 0.0) + letter
        for _ in range(_MOST_SHIFTS):
            if all(abs(x - other) >= letter or abs(y - below) >= letter for other, below in placed):
                break
            x += letter / 2
        placed.append((x, y))
    return Panel(title, caption, boxes, [(round(x, 1), round(y, 1)) for x, y in placed])


def _matched(
    detections: Sequence[_Detection], truth: Sequence[Box], names: dict[int, str]
) -> tuple[list[Box], str]:
    """Tell right from wrong: the boxes, those of missed objects last, and how many there are.

    The detections come with the highest scores first.
    """
    missed, boxes = list(truth), []
    for detection in detections:
        name = names.get(detection.category_id, str(detection.category_id))
        candidates = [box for box in missed if box.title == name]
        best = max(candidates, key=lambda box: _iou(box, detection.bbox), default=None)
        kind: Kind = "false"
        if best is not None and _iou(best, detection.bbox) >= IOU:
            missed.remove(best)
            kind = "found"
        boxes.append(Box(*detection.bbox, kind, f"{name} {detection.score:.2f}"))
    hits = len(truth) - len(missed)
    caption = f"{hits} found, {len(boxes) - hits} false, {len(missed)} missed"
    return boxes + [dataclasses.replace(box, kind="missed") for box in missed], caption


def _iou(box: Box, other: Corners) -> float:
    x, y, width, height = other
    across = min(box.x + box.width, x + width) - max(box.x, x)
    down = min(box.y + box.height, y + height) - max(box.y, y)
    if across <= 0 or down <= 0:
        return 0.0
    overlap = across * down
    return overlap / (box.width * box.height + width * height - overlap)


def _jpeg(path: Path) -> str:
    """Read an image and return it as a data URI, small enough for a page of many."""
    import cv2
    import numpy as np
    from PIL import Image

    content = read_regular(path, _MOST_IMAGE_BYTES, expected="an image")
    try:
        with Image.open(io.BytesIO(content)) as header:
            width, height = header.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise QatvalError(f"{path} is not a readable image") from error
    if width * height > _MOST_PIXELS:
        raise QatvalError(f"{path} has {width} x {height} px, which are too many to show")
    # decoded and encoded again, so that only ever images end up in a report
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise QatvalError(f"{path} is not a readable image")
    scale = _LONG_SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
