"""What is learned and scored: the one place where annotations are dropped, cut and merged.

Training labels, Ultralytics' scores, pycocotools' scores, pictures and counts are all made from
the index that `settled` returns, so none can see a box that another does not.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qatval.core.errors import QatvalError
from qatval.data.coco import AnnotationIndex

RESOLUTION = 1e-3
"""In px: boxes that differ by less are the same, a side below it is none. Detections are written
with three decimals, so nothing finer can be scored."""

ROUNDING = 1.0
"""In px: boxes that reach no further over the border were rounded by whoever wrote them."""

WORRYING_SHARE = 0.01
"""Share of dropped and cut boxes above which a run warns. An object that is not there costs recall,
and with it mAP, by up to its share; the methods that runs compare differ by hundredths. Of COCO
2017 it is less than 0.0001."""

WORRYING_CROWDS = 0.1
"""Share of crowd regions above which a run warns: COCO 2017 has 0.012, and an exporter that marks
objects as crowds by mistake marks most or all."""


@dataclass(frozen=True)
class LabelCounts:
    """What became of the annotations of the selected images.

    Attributes:
        images, annotations: Selected images, and all that the file says about them.
        crowd: No training labels; pycocotools matches them as "ignore".
        degenerate: Dropped: width or height not above zero, or not finite.
        outside: Dropped: wholly outside the image.
        duplicate: Dropped: same image, class and box as an earlier one.
        clipped: Kept, cut at the image border.
        overhanging: Of those, the ones that reached over it by more than a pixel.
        merged: Records of a file that another record of it was taken for.
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
    overhanging: int
    merged: int
    boxes: int
    empty_images: int


@dataclass(frozen=True)
class Labels:
    """Training labels as YOLO takes them.

    Attributes:
        offsets: (N + 1,); image i owns boxes ``offsets[i]:offsets[i + 1]``.
        classes: (M,), contiguous class index.
        boxes: (M, 4), centre x, y, width, height relative to the image, in [0, 1].
    """

    offsets: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]


def without_roots(indexes: Mapping[str, AnnotationIndex]) -> dict[str, AnnotationIndex]:
    """Leave out the category that stands for the whole dataset in Roboflow's exports.

    It has id 0, "none" above it, other categories below it, and no annotation in any split. As a
    class it would be one more than the checkpoint was trained on.

    Args:
        indexes: Of each split, with equal categories.
    """
    first = next(iter(indexes.values()))
    if (
        not first.category_parents
        or first.category_ids[0] != 0
        or first.category_parents[0].lower() != "none"
        or first.category_names[0] not in first.category_parents[1:]
        or any((index.classes == 0).any() for index in indexes.values())
    ):
        return dict(indexes)
    return {
        split: replace(
            index,
            classes=index.classes - np.int32(1),
            category_ids=index.category_ids[1:],
            category_names=index.category_names[1:],
            category_parents=index.category_parents[1:],
        )
        for split, index in indexes.items()
    }


def one_record_per_file(
    index: AnnotationIndex, annotations: Path
) -> tuple[AnnotationIndex, NDArray[np.int64]]:
    """Merge images that are one file under several ids: the smallest id gets all annotations.

    Args:
        index: As read.
        annotations: The file it was read from, for messages.

    Returns:
        The index, and for each of the (I,) images its position in there.

    Raises:
        QatvalError: Two records of a file disagree on its size.
    """
    names = [posixpath.normpath(n) if "/" in n or n == "." else n for n in index.file_names]
    firsts: dict[str, int] = {}
    keeper = np.array([firsts.setdefault(name, row) for row, name in enumerate(names)], np.int64)
    rows = np.flatnonzero(keeper == np.arange(len(names)))
    if len(rows) == len(names):
        return index, keeper
    differing = np.flatnonzero((index.sizes != index.sizes[keeper]).any(axis=1))
    for row in differing.tolist():
        one, other = keeper[row], row
        sizes = " and ".join("{1} x {0}".format(*index.sizes[r].tolist()) for r in (one, other))
        raise QatvalError(
            f"{annotations}: image ids {index.image_ids[one]} and {index.image_ids[other]} are one "
            f"file, {index.file_names[one]}, but of {sizes} px; correct the width and height"
        )
    place = np.searchsorted(rows, keeper)
    merged = replace(
        index,
        image_ids=index.image_ids[rows],
        sizes=index.sizes[rows],
        file_names=tuple(index.file_names[row] for row in rows.tolist()),
        owners=place[index.owners].astype(np.int32),
    )
    return merged, place


def settled(index: AnnotationIndex, rows: NDArray[np.int64]) -> tuple[AnnotationIndex, LabelCounts]:
    """Return some images with the annotations that count, and what became of the others.

    Drops and keeps what Ultralytics' own COCO converter and label check do, except that a box
    reaching over the border is cut instead of costing its image. Crowd regions stay, as such.

    Args:
        index: A decoded annotation file.
        rows: (N,), ascending positions in `index.image_ids`.

    Returns:
        An index of the (N,) images alone; annotations stand image by image, in the file's order
        within an image.
    """
    chosen, owners = index.annotations_of(rows)
    boxes, classes, crowd = index.boxes[chosen], index.classes[chosen], index.crowds[chosen]
    limits = np.concatenate([index.sizes[rows][owners].astype(np.float64)[:, ::-1]] * 2, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        inside = np.clip(corners, 0, limits)
        over = np.abs(inside - corners).max(axis=1, initial=0)
        sides = inside[:, 2:] - inside[:, :2]
    degenerate = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= RESOLUTION).all(axis=1))
    cut = over > 0
    outside = ~degenerate & cut & ~(sides >= RESOLUTION).all(axis=1)
    boxes[cut] = np.concatenate([inside[:, :2], sides], axis=1)[cut]
    kept = np.flatnonzero(~degenerate & ~outside)
    repeats = _repeats(owners[kept], classes[kept], crowd[kept], boxes[kept])
    duplicate = int((repeats & ~crowd[kept]).sum())
    kept = kept[~repeats]

    box_areas = boxes[kept, 2] * boxes[kept, 3]
    areas = index.areas[chosen[kept]]
    areas = np.where(cut[kept], np.minimum(areas, box_areas), areas)
    left = replace(
        index,
        image_ids=index.image_ids[rows],
        sizes=index.sizes[rows],
        file_names=tuple(index.file_names[row] for row in rows.tolist()),
        owners=owners[kept].astype(np.int32),
        classes=classes[kept],
        boxes=boxes[kept],
        areas=np.where(np.isfinite(areas) & (areas >= 0), areas, box_areas),
        crowds=crowd[kept],
    )
    objects = kept[~crowd[kept]]
    return left, LabelCounts(
        images=len(rows),
        annotations=len(chosen),
        crowd=int(crowd.sum()),
        degenerate=int((degenerate & ~crowd).sum()),
        outside=int((outside & ~crowd).sum()),
        duplicate=duplicate,
        clipped=int((over[objects] > RESOLUTION).sum()),
        overhanging=int((over[objects] > ROUNDING).sum()),
        merged=0,
        boxes=len(objects),
        empty_images=len(rows) - len(np.unique(owners[objects])),
    )


def training_labels(index: AnnotationIndex) -> Labels:
    """Turn what `settled` left into training labels; crowd regions are none."""
    kept = ~index.crowds
    boxes, owners = index.boxes[kept], index.owners[kept]
    limits = np.concatenate([index.sizes[owners].astype(np.float64)[:, ::-1]] * 2, axis=1)
    relative = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) / limits
    low, high = relative[:, :2], relative[:, 2:]
    per_image = np.bincount(owners, minlength=len(index.image_ids))
    return Labels(
        offsets=np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64),
        classes=index.classes[kept].astype(np.int64),
        boxes=np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32),
    )


def losses(counts: LabelCounts) -> str:
    """Say what was dropped or changed, "" where nothing was."""
    more = {
        "crowd regions": counts.crowd,
        "images that are another's file": counts.merged,
    }
    return _listed(_altered(counts) | more)


def _altered(counts: LabelCounts) -> dict[str, int]:
    return {
        "of no area": counts.degenerate,
        "outside the image": counts.outside,
        "repeated": counts.duplicate,
        "cut at the border": counts.clipped,
    }


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


def worrying_share(counts: LabelCounts) -> float:
    """Return the share of annotations that were dropped, or cut by more than a pixel."""
    altered = counts.degenerate + counts.outside + counts.duplicate + counts.overhanging
    return altered / max(counts.annotations, 1)


def label_warnings(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line for each thing about a subset's annotations that is worth worrying about.

    Args:
        provenance: The subset's, with the counts of each split.
    """
    return tuple(
        warning
        for split, counts in provenance["counts"].items()
        for warning in _worries(split, LabelCounts(**counts))
    )


def _worries(split: str, counts: LabelCounts) -> Iterator[str]:
    of = f"of {counts.annotations} {split} annotations"
    if (share := worrying_share(counts)) > WORRYING_SHARE:
        yield (
            f"{share:.1%} {of} were dropped or cut, more than {WORRYING_SHARE:.0%} "
            f"({_listed(_altered(counts))}): look at the export before you trust a value"
        )
    if (share := counts.crowd / max(counts.annotations, 1)) > WORRYING_CROWDS:
        yield (
            f"{share:.1%} {of} are crowd regions, which nothing learns and Ultralytics does not "
            "score (COCO 2017 has 1.2%): set iscrowd to 0 where an annotation is one object"
        )


def refuse_fractions(index: AnnotationIndex, annotations: Path) -> None:
    """Refuse boxes that are fractions of their image, as YOLO's label files have them.

    Raises:
        QatvalError: Most boxes end within the first pixel.
    """
    starts, sides = index.boxes[:, :2], index.boxes[:, 2:]
    boxes = index.boxes[(starts >= 0).all(axis=1) & (sides > 0).all(axis=1)]
    with np.errstate(over="ignore"):
        small = int(((boxes[:, :2] + boxes[:, 2:]).max(axis=1, initial=0) <= 1).sum())
    if 2 * small > len(boxes):
        raise QatvalError(
            f"{annotations}: {small} of {len(boxes)} boxes end within the first "
            "pixel, as if they were fractions of the image; COCO's are in pixels: multiply x and "
            "width by the image's width, y and height by its height"
        )


def refuse_nothing(split: str, counts: LabelCounts, annotations: Path) -> None:
    """Refuse a split of which no label is left.

    Raises:
        QatvalError: It says why none is, and what to do.
    """
    if counts.boxes:
        return
    use = "learn from" if split == "train" else "score against"
    if not counts.annotations:
        why = f"its {counts.images} selected images have no annotation"
        remedy = "export the annotations with the images, or select other images"
    else:
        why = f"of the {counts.annotations} annotations of its {counts.images} selected images "
        why += f"none is left ({losses(counts)})"
        remedy = "correct the boxes or their export"
        if counts.crowd > counts.annotations / 2:
            remedy = "set iscrowd to 0 where an annotation is one object"
    raise QatvalError(f"{annotations}: no label to {use}: {why}; {remedy}")


def _repeats(
    owners: NDArray[np.int64],
    classes: NDArray[np.int32],
    crowds: NDArray[np.bool_],
    boxes: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Mark every (image, class, box) that occurred before."""
    columns = [*np.rint(boxes / RESOLUTION).T, crowds, classes, owners]
    order = np.lexsort(columns)
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for column in columns:
        ordered = column[order]
        same &= ordered[1:] == ordered[:-1]
    repeats = np.zeros(len(order), np.bool_)
    repeats[order[1:]] = same
    return repeats
