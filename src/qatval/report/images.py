"""Validation images with the ground truth and what each method found in them and missed."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.errors import QatvalError

if TYPE_CHECKING:
    from qatval.data.coco import AnnotationIndex

EXAMPLES = 6
SCORE = 0.25
IOU = 0.5
_LONG_SIDE = 640  # px, enough for a panel on a screen of two pixels a px
_QUALITY = 80
_LETTERS = 24  # as high as a number that the image is wide

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
    """Some validation images, seen by the methods of one seed."""

    seed: int
    examples: Sequence[Example]


class _Detection(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: Corners
    score: float


def example_images(runs: Sequence[LoadedRun]) -> ExampleImages | str:
    """Choose images and read what the runs of one seed found in them.

    The images are spread evenly over those with at least one object, in order of their ids: nobody
    picked them.

    Returns:
        The images, or one line that says why there is none.
    """
    by_seed: dict[int, dict[str, tuple[LoadedRun, Path]]] = defaultdict(dict)
    for run in runs:
        predictions = _located(run, run.summary.artifacts.predictions)
        if run.completed and predictions is not None:
            by_seed[run.seed].setdefault(run.method, (run, predictions))
    if not by_seed:
        return "No run recorded its detections, or they are no longer where they were."
    seed = max(by_seed, key=lambda seed: (len(by_seed[seed]), -seed))
    try:
        return ExampleImages(seed, _examples([*by_seed[seed].values()]))
    except (QatvalError, OSError, msgspec.MsgspecError) as error:
        return f"The validation images cannot be shown: {error}"


def _located(run: LoadedRun, recorded: str | None) -> Path | None:
    """Find an artifact now: run roots may have been moved since their paths were recorded."""
    if recorded is None:
        return None
    places = [run.root / recorded]
    written_in = run.summary.artifacts.run_root
    if Path(recorded).is_relative_to(written_in):
        places.append(run.root / Path(recorded).relative_to(written_in))
    return next((place for place in places if place.exists()), None)


def _examples(chosen: Sequence[tuple[LoadedRun, Path]]) -> list[Example]:
    import numpy as np

    from qatval.data.coco import read_annotations

    first, _ = chosen[0]
    annotations = _located(first, first.summary.artifacts.val_annotations)
    folder = _located(first, first.summary.artifacts.val_image_dir)
    if annotations is None or folder is None:
        raise QatvalError("the dataset is no longer where the runs found it")
    index, _ = read_annotations(annotations)
    with_objects = np.unique(index.owners[~index.crowds])
    if len(with_objects) == 0:
        raise QatvalError(f"{annotations} holds no objects")
    places = np.linspace(0, len(with_objects) - 1, min(EXAMPLES, len(with_objects)))
    rows = [int(row) for row in with_objects[places.round().astype(int)]]
    shown = {int(index.image_ids[row]) for row in rows}
    detections = [(run.method, _detections(path, shown)) for run, path in chosen]
    return [_example(index, row, folder, detections) for row in rows]


def _detections(predictions: Path, shown: set[int]) -> dict[int, list[_Detection]]:
    found: dict[int, list[_Detection]] = {image_id: [] for image_id in shown}
    for detection in msgspec.json.decode(predictions.read_bytes(), type=list[_Detection]):
        if detection.image_id in shown and detection.score >= SCORE:
            found[detection.image_id].append(detection)
    return found


def _example(
    index: AnnotationIndex,
    row: int,
    folder: Path,
    detections: Iterable[tuple[str, dict[int, list[_Detection]]]],
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
        while any(abs(x - other) < letter and abs(y - below) < letter for other, below in placed):
            x += letter / 2
        placed.append((x, y))
    return Panel(title, caption, boxes, [(round(x, 1), round(y, 1)) for x, y in placed])


def _matched(
    detections: Sequence[_Detection], truth: Sequence[Box], names: dict[int, str]
) -> tuple[list[Box], str]:
    """Tell right from wrong: the boxes, those of missed objects last, and how many there are."""
    missed, boxes = list(truth), []
    for detection in sorted(detections, key=lambda d: -d.score):
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

    # decoded and encoded again, so that only ever images end up in a report
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise QatvalError(f"{path} is not a readable image")
    scale = _LONG_SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
