"""An exported file scored on validation images, by the two protocols that runs are scored by."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qatval.core.classes import match_classes
from qatval.core.errors import QatvalError
from qatval.core.files import read_regular
from qatval.core.progress import Progress
from qatval.data.coco import Detection, write_annotations
from qatval.data.coco_protocol import evaluate_coco, interpolated_map
from qatval.data.decoding import MOST_BYTES, TooLargeError, decoded_image
from qatval.data.ultralytics_protocol import hits, mean_average_precision
from qatval.data.validation import ValidationSet
from qatval.deploy.card import Card
from qatval.deploy.postprocessing import Found, found_in, in_image
from qatval.deploy.preprocessing import Placement, network_input
from qatval.deploy.runtimes import Runtime

PARITY = 0.001
"""By how much a file may score otherwise than its run. Float32 in another order moves a detection
over a threshold here and there: on 128 embedded images by 0.0001 at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """What one pass over the validation images gave, in [0, 1].

    Attributes:
        value: mAP 50-95 as Ultralytics computes it, the primary metric.
        coco_map: The same by COCO's own protocol.
        interpolated, matched_map: The two that check each other, see
            `qatval.data.coco_protocol`.
        detections: As a run records its own, clipped to their images.
    """

    value: float
    coco_map: float
    interpolated: float
    matched_map: float
    detections: list[Detection]


def score(runtime: Runtime, validation: ValidationSet) -> Score:
    """Score a file as it runs in a runtime.

    Raises:
        QatvalError: Its classes are not the dataset's, or an image cannot be decoded.
    """
    index, labels = validation.index, validation.labels
    class_of = _dataset_classes(runtime.card, index.category_names)
    side = runtime.card.input.imgsz
    right, detections = [], []
    for row, (found, at) in enumerate(_answers(runtime, validation)):
        classes = class_of[found.classes]
        own = slice(labels.offsets[row], labels.offsets[row + 1])
        objects = _in_square(labels.boxes[own], at, side)
        right.append(hits(found.boxes, classes, objects, labels.classes[own]))
        boxes = in_image(found, at)
        for box, sure, label in zip(
            boxes.tolist(), found.scores.tolist(), classes.tolist(), strict=True
        ):
            detections.append((row, label, sure, box))
    matched = np.concatenate(right)
    scores = np.array([sure for _, _, sure, _ in detections], np.float32)
    predicted = np.array([label for _, label, _, _ in detections], np.int64)
    in_coco_format: list[Detection] = [
        {
            "image_id": int(index.image_ids[row]),
            "category_id": int(index.category_ids[label]),
            "bbox": [round(number, 3) for number in box],
            "score": round(sure, 6),
        }
        for row, label, sure, box in detections
    ]
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder, "annotations.json")
        write_annotations(index, annotations)
        coco = evaluate_coco(annotations, in_coco_format, resamples=0)
    return Score(
        value=mean_average_precision(matched, scores, predicted, labels.classes),
        coco_map=coco.map,
        interpolated=interpolated_map(matched, scores, predicted, labels.classes),
        matched_map=coco.matched_map,
        detections=coco.detections,
    )


def _dataset_classes(card: Card, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return by a class of the file the dataset's, found by name."""
    if len(names) != len(card.class_names):
        raise QatvalError(
            f"the file detects {len(card.class_names)} classes, the dataset has {len(names)}: "
            "score it on data of its own classes"
        )
    try:
        match = match_classes(names, card.class_names)
    except QatvalError as error:
        raise QatvalError(f"the file {error}") from error
    if match.said:
        _log.warning("%s", match.said)
    return np.argsort(match.rows)


def _answers(runtime: Runtime, validation: ValidationSet) -> Iterator[tuple[Found, Placement]]:
    """Yield what is found in each image, which are run in batches as large as the file asks."""
    card, names = runtime.card, validation.index.file_names
    told = card.input
    batch = told.batch or 1
    images = np.zeros((batch, 3, told.imgsz, told.imgsz), np.float32)
    with Progress(runtime.name) as progress:
        progress.stage("scoring", len(names))
        for start in range(0, len(names), batch):
            places = []
            for number, name in enumerate(names[start : start + batch]):
                image = _decoded(validation.image_dir / name)
                images[number], at = network_input(image, told)
                places.append(at)
            answers = found_in(runtime.run(images), card.output, len(card.class_names))
            yield from zip(answers, places, strict=False)  # the last batch may not be full
            progress.step(start + len(places))


def _decoded(file: Path) -> NDArray[np.uint8]:
    try:
        image = decoded_image(read_regular(file, MOST_BYTES, expected="an image"), file.name)
    except TooLargeError as error:
        raise QatvalError(f"{file}: has {error}, which are too many to decode") from error
    if image is None:
        raise QatvalError(
            f"{file}: cannot be decoded; 'qatval dataset check --verify' lists what is damaged"
        )
    return image


def _in_square(boxes: NDArray[np.float32], at: Placement, side: int) -> NDArray[np.float32]:
    """Return labels as Ultralytics' validator has them, down to its rounding to float32.

    Args:
        boxes: Centre x, y, width, height relative to the image, ``(N, 4)``.
        at: Where the image is.
        side: Of the square in px.

    Returns:
        Left, top, right, bottom in px of the square.
    """
    corners = _corners(boxes)
    corners *= np.array([at.width, at.height] * 2, np.float32)
    corners += np.array([at.left, at.top] * 2, np.float32)
    low, high = corners[:, :2], corners[:, 2:]
    relative = np.concatenate([(low + high) / 2, high - low], axis=1)
    relative /= np.float32(side)
    return _corners(relative) * np.float32(side)


def _corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    centres, halves = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)
