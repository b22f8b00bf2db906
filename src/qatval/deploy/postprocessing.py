"""From the network's answer to detections, as evaluation in a run does it.

Ultralytics does it there (`non_max_suppression`, `scale_boxes`), with torchvision's NMS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qatval.core.errors import QatvalError
from qatval.deploy.card import Output
from qatval.deploy.preprocessing import Placement

# Ultralytics' own: candidates that NMS looks at, and px that keep the boxes of classes apart.
_MOST_CANDIDATES = 30_000
_APART = 7680


@dataclass(frozen=True)
class Found:
    """What was found in one image, the highest scores first.

    Attributes:
        boxes: ``(detections, 4)``, left, top, right, bottom in px.
        scores: ``(detections,)`` in [0, 1].
        classes: ``(detections,)``, indices.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def found_in(answer: NDArray[np.float32], told: Output, classes: int) -> list[Found]:
    """Read an answer.

    Args:
        answer: Of the network, for one or more images.
        told: What it is.
        classes: How many the network knows.

    Returns:
        What was found in each, in px of the network's input.

    Raises:
        QatvalError: It is nothing of the kind.
    """
    final = told.nms_iou is None
    width = answer.shape[2] if final else answer.shape[1] - 4
    if width != (6 if final else classes):
        raise QatvalError(
            f"the network answers with the shape {'x'.join(map(str, answer.shape))}, which is not "
            f"what its file says of it ({classes} classes); export the run again"
        )
    read = _final if final else _thinned_out
    found = [read(of_image, told) for of_image in answer]
    for of_image in found:
        if ((of_image.classes < 0) | (of_image.classes >= classes)).any():
            raise QatvalError(
                f"the network answers with a class beyond the {classes} that its file names; "
                "export the run again"
            )
    return found


def _final(rows: NDArray[np.float32], told: Output) -> Found:
    rows = rows[rows[:, 4] > told.confidence][: told.max_detections]
    # what is no class must not become one in the cast
    classes = np.where(np.abs(rows[:, 5]) < 2**31, rows[:, 5], -1)
    return Found(rows[:, :4], rows[:, 4], classes.astype(np.int64))


def _thinned_out(columns: NDArray[np.float32], told: Output) -> Found:
    """Leave the best of the boxes of a class that overlap; a box may be of several classes."""
    assert told.nms_iou is not None
    sides, scores = columns[:4].T, columns[4:].T
    centres, halves = sides[:, :2], sides[:, 2:] / 2
    corners = np.concatenate([centres - halves, centres + halves], axis=1)
    anchors, classes = np.nonzero(scores > told.confidence)
    scores, boxes = scores[anchors, classes], corners[anchors]
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    scores, boxes, classes = scores[order], boxes[order], classes[order]
    apart = boxes + (classes * _APART).astype(np.float32)[:, None]
    kept = _not_overlapped(apart, told.nms_iou, told.max_detections)
    return Found(boxes[kept], scores[kept], classes[kept])


def _not_overlapped(boxes: NDArray[np.float32], most: float, count: int) -> list[int]:
    """Return the first ``count`` of ``(N, 4)`` boxes that no better one overlaps by over ``most``.

    In float32, as torchvision computes overlaps, which compares them in float64.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < count:
        best, left = left[0], left[1:]
        kept.append(int(best))
        near = np.minimum(boxes[best, 2:], boxes[left, 2:])
        far = np.maximum(boxes[best, :2], boxes[left, :2])
        across, down = np.maximum(near - far, np.float32(0)).T
        both = across * down
        overlap = both / (areas[best] + areas[left] - both)
        left = left[~(overlap > np.float64(most))]  # of empty boxes it is no number
    return kept


def in_image(found: Found, at: Placement) -> NDArray[np.float32]:
    """Return the boxes as x, y of the top left corner, width, height in px of the image.

    They are as the network gave them, not clipped to the image.
    """
    boxes = found.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    boxes[:, 0] -= at.left
    boxes[:, 1] -= at.top
    down, across = at.gains
    boxes[:, 0::2] /= across
    boxes[:, 1::2] /= down
    return boxes
