"""Training labels from COCO annotations: what is dropped, what is cut, and how often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qatval.data.coco import AnnotationIndex


@dataclass(frozen=True)
class LabelCounts:
    """What became of the annotations of the selected images.

    Attributes:
        images, annotations: Selected images, and all that the file says about them.
        crowd: Dropped as training labels; pycocotools matches them as "ignore".
        degenerate: Dropped: width or height not above zero, or not finite.
        outside: Dropped: wholly outside the image.
        duplicate: Dropped: same image, class and box as an earlier one.
        clipped: Kept, cut at the image border.
        boxes: Training labels left.
        empty_images: Images without a training label.
    """

    images: int
    annotations: int
    crowd: int
    degenerate: int
    outside: int
    duplicate: int
    clipped: int
    boxes: int
    empty_images: int


@dataclass(frozen=True)
class Labels:
    """Training labels as YOLO takes them.

    Attributes:
        offsets: (N + 1,); image i owns boxes ``offsets[i]:offsets[i + 1]``.
        classes: (M,).
        boxes: (M, 4), centre x, y, width, height relative to the image, in [0, 1].
        counts: How the annotations became labels.
    """

    offsets: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    counts: LabelCounts


def training_labels(index: AnnotationIndex, rows: NDArray[np.int64]) -> Labels:
    """Turn the annotations of some images into training labels.

    Drops and keeps what Ultralytics' own COCO converter and label check do, except that a box
    reaching over the border is cut instead of costing its image.

    Args:
        index: A decoded annotation file.
        rows: (N,), ascending positions in `index.image_ids`.
    """
    chosen, owners = index.annotations_of(rows)
    boxes = index.boxes[chosen]
    height_width = index.sizes[rows][owners].astype(np.float64)
    limits = np.concatenate([height_width[:, ::-1]] * 2, axis=1)

    crowd = index.crowds[chosen]
    degenerate = ~crowd & ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1))
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    inside = np.clip(corners, 0, limits)
    outside = ~crowd & ~degenerate & ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
    kept = np.flatnonzero(~crowd & ~degenerate & ~outside)
    repeats = _repeats(owners[kept], index.classes[chosen[kept]], boxes[kept])
    kept = kept[~repeats]

    inside, limits, owners = inside[kept], limits[kept], owners[kept]
    relative = inside / limits
    low, high = relative[:, :2], relative[:, 2:]
    per_image = np.bincount(owners, minlength=len(rows))
    return Labels(
        offsets=np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64),
        classes=index.classes[chosen[kept]].astype(np.int64),
        boxes=np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32),
        counts=LabelCounts(
            images=len(rows),
            annotations=len(chosen),
            crowd=int(crowd.sum()),
            degenerate=int(degenerate.sum()),
            outside=int(outside.sum()),
            duplicate=int(repeats.sum()),
            clipped=int((inside != corners[kept]).any(axis=1).sum()),
            boxes=len(kept),
            empty_images=int((per_image == 0).sum()),
        ),
    )


def _repeats(
    owners: NDArray[np.int64], classes: NDArray[np.int32], boxes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Mark every (image, class, box) that occurred before."""
    columns = [*boxes.T, classes, owners]
    order = np.lexsort(columns)
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for column in columns:
        ordered = column[order]
        same &= ordered[1:] == ordered[:-1]
    repeats = np.zeros(len(order), np.bool_)
    repeats[order[1:]] = same
    return repeats
