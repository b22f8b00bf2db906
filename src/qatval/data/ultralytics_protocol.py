"""Ultralytics' mAP, the primary metric, without torch.

What Ultralytics computes of the same arrays, in the same precision; tests hold it to its own code.
How it differs from COCO's protocol is said in `qatval.data.coco_protocol`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_THRESHOLDS = 10
_STEP = np.float32(0.45) / np.float32(_THRESHOLDS - 1)
_RECALLS = np.linspace(0, 1, 101)
_FOR_DIVISION = 1e-7, 1e-16  # what Ultralytics adds to areas, and to counts


def _iou_thresholds() -> NDArray[np.float32]:
    """Return 0.5, 0.55, ..., 0.95 to the bit as torch has them, which counts from both ends."""
    steps = np.arange(_THRESHOLDS // 2, dtype=np.float32) * _STEP
    return np.concatenate([np.float32(0.5) + steps, (np.float32(0.95) - steps)[::-1]])


IOU_THRESHOLDS = _iou_thresholds()


def hits(
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    objects: NDArray[np.float32],
    object_classes: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Match the detections of one image with its objects.

    At each threshold, one after the other takes the free object of its class that it overlaps most.

    Args:
        boxes: Of detections, the highest scores first: left, top, right, bottom, ``(N, 4)``.
        classes: Of detections, ``(N,)``.
        objects: Their boxes in the same px, ``(M, 4)``.
        object_classes: ``(M,)``.

    Returns:
        Whether a detection is a true positive at each of `IOU_THRESHOLDS`, ``(N, 10)``.
    """
    right = np.zeros((len(boxes), _THRESHOLDS), np.bool_)
    if not len(boxes) or not len(objects):
        return right
    overlaps = _ious(objects, boxes) * (object_classes[:, None] == classes)
    taken = np.zeros((len(objects), _THRESHOLDS), np.bool_)
    each = np.arange(_THRESHOLDS)
    for number in np.flatnonzero((overlaps >= IOU_THRESHOLDS[0]).any(axis=0)):
        free = np.where(taken, np.float32(0), overlaps[:, number, None])
        best = free.argmax(axis=0)
        right[number] = free[best, each] >= IOU_THRESHOLDS
        taken[best, each] |= right[number]
    return right


def _ious(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the overlap of ``(M, 4)`` boxes with ``(N, 4)``, ``(M, N)``."""
    a, b = one[:, None], other[None]
    across_down = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = np.maximum(across_down, np.float32(0)).prod(axis=2)
    areas = (a[..., 2:] - a[..., :2]).prod(axis=2), (b[..., 2:] - b[..., :2]).prod(axis=2)
    result: NDArray[np.float32] = inside / (
        areas[0] + areas[1] - inside + np.float32(_FOR_DIVISION[0])
    )
    return result


def mean_average_precision(
    hits: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    predicted: NDArray[Any],
    objects: NDArray[Any],
) -> float:
    """Return mAP 50-95 over the classes that have objects; 0 where there are none.

    Args:
        hits: Whether a detection is a true positive, ``(detections, thresholds)``.
        scores: ``(detections,)``.
        predicted: Class of each detection, ``(detections,)``.
        objects: Class of each object, ``(objects,)``.
    """
    order = np.argsort(-scores)
    hits, predicted = hits[order], predicted[order]
    present, counts = np.unique(objects, return_counts=True)
    found = np.zeros((len(present), hits.shape[1]))
    for row, (label, count) in enumerate(zip(present, counts, strict=True)):
        right = hits[predicted == label]
        if not len(right):
            continue
        true, false = right.cumsum(axis=0), (1 - right).cumsum(axis=0)
        recall, precision = true / (count + _FOR_DIVISION[1]), true / (true + false)
        found[row] = [_area(r, p) for r, p in zip(recall.T, precision.T, strict=True)]
    return float(found.mean()) if found.size else 0.0


def _area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Return the area under the envelope of a curve, which begins at precision 1."""
    x = np.concatenate([[0.0], recall, [recall[-1], 1.0]])
    y = np.concatenate([[1.0], precision, [0.0, 0.0]])
    y = np.maximum.accumulate(y[::-1])[::-1]
    at = np.interp(_RECALLS, x, y)
    return float((np.diff(_RECALLS) * (at[1:] + at[:-1]) / 2.0).sum())
