"""Validation images with the ground truth and what each method found in them."""

from __future__ import annotations

import base64
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
_LONG_SIDE = 320  # px; what a strip shows is smaller still

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """A box as it is drawn: x, y of the top left corner, width, height in px of the image."""

    x: float
    y: float
    width: float
    height: float
    kind: Literal["truth", "found", "false"]
    title: str


@dataclass(frozen=True)
class Panel:
    """One view of an image."""

    title: str
    boxes: Sequence[Box]
    caption: str


@dataclass(frozen=True)
class Example:
    """An image with its views; width and height are the original's in px."""

    image_id: int
    jpeg: str
    width: int
    height: int
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Strip:
    """Some validation images, seen by the methods of one seed."""

    seed: int
    examples: Sequence[Example]


class _Detection(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: Corners
    score: float


def strip(runs: Sequence[LoadedRun]) -> Strip | str:
    """Choose images and read what the runs of one seed found in them.

    The images are spread evenly over those with at least one object, in order of their ids: nobody
    picked them.

    Returns:
        The strip, or one line that says why there is none.
    """
    chosen = _one_seed(runs)
    if not chosen:
        return "No run recorded its detections, or they are no longer where they were."
    try:
        return Strip(chosen[0].seed, _examples(chosen))
    except (QatvalError, OSError, msgspec.MsgspecError) as error:
        return f"The validation images cannot be shown: {error}"


def _one_seed(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    by_seed: dict[int, dict[str, LoadedRun]] = defaultdict(dict)
    for run in runs:
        if run.completed and _artifact(run, "predictions") is not None:
            by_seed[run.seed].setdefault(run.method, run)
    best = max(by_seed, key=lambda seed: (len(by_seed[seed]), -seed), default=None)
    return [] if best is None else list(by_seed[best].values())


def _artifact(run: LoadedRun, name: str) -> Path | None:
    """Find an artifact now: run roots may have been moved since their paths were recorded."""
    recorded = run.section("artifacts").get(name)
    if not isinstance(recorded, str):
        return None
    places = [run.root / recorded]
    written_in = Path(run.summary["artifacts"]["run_root"])
    if Path(recorded).is_relative_to(written_in):
        places.append(run.root / Path(recorded).relative_to(written_in))
    return next((place for place in places if place.exists()), None)


def _examples(runs: Sequence[LoadedRun]) -> list[Example]:
    import numpy as np

    from qatval.data.coco import read_annotations

    annotations, folder = _artifact(runs[0], "val_annotations"), _artifact(runs[0], "val_image_dir")
    if annotations is None or folder is None:
        raise QatvalError("the dataset is no longer where the runs found it")
    index, _ = read_annotations(annotations)
    with_objects = np.unique(index.owners)
    if len(with_objects) == 0:
        raise QatvalError(f"{annotations} holds no objects")
    places = np.linspace(0, len(with_objects) - 1, min(EXAMPLES, len(with_objects)))
    rows = [int(row) for row in with_objects[places.round().astype(int)]]
    shown = {int(index.image_ids[row]) for row in rows}
    detections = [(run.method, _detections(run, shown)) for run in runs]
    return [_example(index, row, folder, detections) for row in rows]


def _detections(run: LoadedRun, shown: set[int]) -> dict[int, list[_Detection]]:
    path = _artifact(run, "predictions")
    found: dict[int, list[_Detection]] = defaultdict(list)
    if path is not None:
        for detection in msgspec.json.decode(path.read_bytes(), type=list[_Detection]):
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
    panels = [Panel("ground truth", truth, formatting.count(len(truth), "object"))]
    for method, by_image in detections:
        panels.append(_panel(method, by_image.get(image_id, []), truth, names))
    jpeg = _jpeg(folder / index.file_names[row])
    return Example(image_id, jpeg, width, height, panels)


def _panel(
    method: str, detections: Sequence[_Detection], truth: Sequence[Box], names: dict[int, str]
) -> Panel:
    open_ = list(truth)
    boxes = []
    for detection in sorted(detections, key=lambda d: -d.score):
        name = names.get(detection.category_id, str(detection.category_id))
        candidates = [box for box in open_ if box.title == name]
        best = max(candidates, key=lambda box: _iou(box, detection.bbox), default=None)
        found = best is not None and _iou(best, detection.bbox) >= IOU
        if found and best is not None:
            open_.remove(best)
        kind: Literal["found", "false"] = "found" if found else "false"
        boxes.append(Box(*detection.bbox, kind, f"{name} {detection.score:.2f}"))
    found_count = sum(box.kind == "found" for box in boxes)
    caption = f"{found_count} found, {len(boxes) - found_count} false, {len(open_)} missed"
    return Panel(method, boxes, caption)


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
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
