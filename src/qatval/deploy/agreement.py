"""Whether two models found the same, detection by detection.

Two programs that compute one network differ in the last bits, and where inputs are rounded to few
levels also by a level here and there. What lies at a cut, the lowest score that counts or the last
detection that is kept, may then be on one side alone: it says nothing and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qatval.core.deployment import Agreement
from qatval.data.coco import Detection
from qatval.deploy.card import Output

BOX = 1.0
"""Px of the image by which a side may differ: a viewer sees no less, and it moves the overlap of a
box of 20 px by less than a step of 0.05 between the thresholds of mAP. Float32 differs by 0.001."""

SCORE = 0.01
"""By how much a score may differ. Float32 differs by 0.00001; a level of a 4-bit input was seen to
move one by some thousandths."""


def agreement(ours: Sequence[Detection], theirs: Sequence[Detection], told: Output) -> Agreement:
    """Compare two models' detections on the same images.

    Args:
        ours, theirs: In COCO's result format.
        told: Where both were cut off.

    Returns:
        The differences of the pairs, and how many found no partner within `BOX` and `SCORE`.
    """
    of_ours, of_theirs = _by_image(ours), _by_image(theirs)
    pairs, unmatched, box, score = 0, 0, 0.0, 0.0
    for image in of_ours.keys() | of_theirs.keys():
        sides = of_ours.get(image, []), of_theirs.get(image, [])
        boxes, scores, *alone = _compared(*sides)
        pairs += len(boxes)
        for left, other in zip(alone, reversed(sides), strict=True):
            # what the other side may have counted no more, or had no place for
            unmatched += int((left > _cut(other, told) + SCORE).sum())
        box = max(box, boxes.max(initial=0.0))
        score = max(score, scores.max(initial=0.0))
    return Agreement(
        detections=pairs + unmatched, unmatched=unmatched, box=float(box), score=float(score)
    )


def _by_image(detections: Sequence[Detection]) -> dict[int, list[Detection]]:
    by_image = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    return by_image


def _cut(detections: Sequence[Detection], told: Output) -> float:
    """Return the score below which an image's detections are not known."""
    if len(detections) < told.max_detections:
        return told.confidence
    return min(detection["score"] for detection in detections)


def _compared(
    ours: Sequence[Detection], theirs: Sequence[Detection]
) -> tuple[NDArray[np.float64], ...]:
    """Pair the detections of one image, the closest first.

    Returns:
        Of each pair the largest difference of a side in px and the difference of scores, and the
        scores of those without a partner, ours and theirs.
    """
    (boxes, scores, classes), (their_boxes, their_scores, their_classes) = map(
        _columns, (ours, theirs)
    )
    far = np.abs(boxes[:, None] - their_boxes).max(axis=2, initial=0.0)
    apart = np.abs(scores[:, None] - their_scores)
    distance = np.maximum(far / BOX, apart / SCORE)
    distance[classes[:, None] != their_classes] = np.inf
    free, their_free = np.ones(len(ours), np.bool_), np.ones(len(theirs), np.bool_)
    rows, columns = np.nonzero(distance <= 1)
    closest = np.argsort(distance[rows, columns], kind="stable")
    pairs = []
    for row, column in zip(rows[closest].tolist(), columns[closest].tolist(), strict=True):
        if free[row] and their_free[column]:
            free[row] = their_free[column] = False
            pairs.append((far[row, column], apart[row, column]))
    differences = np.array(pairs, np.float64).reshape(-1, 2)
    return differences[:, 0], differences[:, 1], scores[free], their_scores[their_free]


def _columns(
    detections: Sequence[Detection],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return left, top, right, bottom, the scores and the categories."""
    boxes = np.array([d["bbox"] for d in detections], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([d["score"] for d in detections], np.float64)
    return boxes, scores, np.array([d["category_id"] for d in detections], np.int64)
