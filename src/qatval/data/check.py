"""Everything that is wrong with a dataset, each kind with its count and an example.

Building a subset stops at the first thing that it cannot use. Here nothing stops: of an annotation
file with faults, what is whole is looked at further, and so are the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qatval.core.errors import QatvalError
from qatval.data.annotation_faults import read_whole_records
from qatval.data.coco import SPLITS, AnnotationIndex, CocoFiles, coco_files, read_annotations
from qatval.data.image_files import image_problems
from qatval.data.labels import (
    LabelCounts,
    Labels,
    one_record_per_file,
    refuse_fractions,
    settled,
    training_labels,
    without_roots,
)
from qatval.data.naming import name_of
from qatval.data.selection import draw_random, take_first
from qatval.data.shapes import read_manifest

Level = Literal["ok", "note", "problem"]
"""``"problem"`` if no run should start with it, ``"note"`` if somebody should know of it."""

# What to say of counts of `LabelCounts`; one that is not here is said by its name.
_DROPPED = {
    "crowd": "crowd regions are no training labels",
    "degenerate": "boxes of no area are dropped",
    "outside": "boxes wholly outside their image are dropped",
    "duplicate": "boxes said twice are dropped",
    "clipped": "boxes are cut at the image border",
    "overhanging": "of these reached over it by more than a pixel",
    "empty_images": "images are without a label",
}
_TOTALS = ("images", "annotations", "boxes")


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        level: How much it matters.
        subject: What was looked at, e.g. ``"train images"``.
        message: What was found, and what to do where something is wrong.
        count: How many records or files it concerns, where that can be counted.
        example: One of them.
    """

    level: Level
    subject: str
    message: str
    count: int | None = None
    example: str | None = None


def check_dataset(
    coco_root: Path,
    *,
    train_images: int | None = None,
    val_images: int | None = None,
    seed: int = 0,
    decode: bool = False,
) -> Iterator[Finding]:
    """Look at all of a dataset that a run would use.

    Args:
        coco_root: Dataset in COCO 2017's layout.
        train_images: How many a run would draw with `seed`; None for all.
        val_images: How many of the smallest ids; None for all.
        seed: Of the draw.
        decode: Decode every image whole instead of trusting its first and last bytes.

    Yields:
        A finding for each kind of problem, or one that says that all is well, as it is found.
    """
    root = coco_root.absolute()
    files = {split: CocoFiles.of(root, split) for split in SPLITS}
    yield from _layout(root, files)
    indexes, digests, whole = {}, {}, True
    for split, of_split in files.items():
        if of_split.annotations.is_file():
            findings, read = _read(split, of_split.annotations)
            yield from findings
            whole &= all(finding.level != "problem" for finding in findings)
            if read is not None:
                indexes[split], digests[split] = read
    if len(indexes) == len(SPLITS):
        yield _categories(indexes)
        if whole:
            name = name_of(digests, indexes, drawn=read_manifest(root) is not None)
            yield Finding("ok", "dataset", f"called '{name}'")
        indexes = without_roots(indexes)
    labels = {}
    for split, listed in indexes.items():
        try:
            index, _ = one_record_per_file(listed, files[split].annotations)
        except QatvalError as error:
            yield Finding("problem", f"{split} annotations", str(error))
            continue
        drawn = {
            "train": draw_random(index, train_images, seed),
            "val": take_first(index, val_images),
        }
        rows = drawn[split].rows
        if not len(rows):
            yield Finding("problem", f"{split} labels", "no images are listed", 0)
            continue
        left, counts = settled(index, rows)
        try:
            refuse_fractions(index, files[split].annotations)
        except QatvalError as error:
            yield Finding("problem", f"{split} annotations", str(error))
        labels[split] = training_labels(left)
        yield from _labels(split, index, rows, counts)
        if files[split].image_dir.is_dir():
            yield from _images(split, files[split], index, rows, decode)
    if len(labels) == len(SPLITS):
        names, *others = (index.category_names for index in indexes.values())
        if others == [names]:
            yield from _classes(names, labels)


def _layout(root: Path, files: Mapping[str, CocoFiles]) -> Iterator[Finding]:
    try:
        coco_files(root)
        yield Finding("ok", "layout", f"{root} is laid out as COCO 2017")
    except QatvalError as error:
        parts = [path for f in files.values() for path in (f.annotations, f.image_dir)]
        missing = [path for path in parts if not path.exists()]
        more = f"; {len(missing)} of {len(parts)} parts are missing" if root.is_dir() else ""
        yield Finding("problem", "layout", f"{error}{more}", len(missing), str(missing[0]))


def _read(split: str, path: Path) -> tuple[list[Finding], tuple[AnnotationIndex, str] | None]:
    """Read an annotation file, or what of it is whole; say what is not."""
    subject = f"{split} annotations"
    try:
        index, digest = read_annotations(path)
    except QatvalError as error:
        refused = Finding("problem", subject, str(error))
        faults, rest = read_whole_records(path)
        found = []
        for fault, (count, example) in faults.items():
            said = f"{path.name}: {fault} ({count} times, e.g. {example}); correct or remove these"
            found.append(Finding("problem", subject, said, count, example))
        return (found if found and rest else [refused, *found]), rest
    counts = f"{len(index.image_ids)} images, {len(index.owners)} annotations"
    return [Finding("ok", subject, counts), *_repeated_names(subject, index)], (index, digest)


def _repeated_names(subject: str, index: AnnotationIndex) -> Iterator[Finding]:
    ordered = sorted(index.file_names)
    repeated = [one for one, after in pairwise(ordered) if one == after]
    if repeated:
        said = f"{len(repeated)} file names are listed again; their entries are taken as one image"
        yield Finding("note", subject, f"{said}, e.g. {repeated[0]}", len(repeated), repeated[0])


def _categories(indexes: Mapping[str, AnnotationIndex]) -> Finding:
    of = {
        split: dict(zip(index.category_ids.tolist(), index.category_names, strict=True))
        for split, index in indexes.items()
    }
    differing = sorted(dict(of["train"].items() ^ of["val"].items()))
    if differing:
        first = differing[0]
        said = f"{len(differing)} category ids differ between the splits, e.g. {first}"
        what = f"{of['train'].get(first)!r} in train, {of['val'].get(first)!r} in val"
        remedy = "both files must list the same"
        return Finding(
            "problem", "categories", f"{said} ({what}); {remedy}", len(differing), str(first)
        )
    names = list(of["train"].values())
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        said = f"{len(repeated)} names stand for several categories, e.g. {repeated[0]!r}"
        return Finding("note", "categories", said, len(repeated), repeated[0])
    return Finding("ok", "categories", f"{len(names)}, the same in both splits")


def _labels(
    split: str, index: AnnotationIndex, rows: NDArray[np.int64], counts: LabelCounts
) -> Iterator[Finding]:
    subject = f"{split} labels"
    said = f"{counts.boxes} boxes of {counts.annotations} annotations on {len(rows)} images"
    if counts.boxes:
        yield Finding("ok", subject, said)
    else:
        yield Finding("problem", subject, f"no label is left: {said}; correct the annotations", 0)
    for name, count in vars(counts).items():
        if count and name not in _TOTALS:
            example = index.file_names[_first_with(name, index, rows)]
            text = _DROPPED.get(name, name.replace("_", " "))
            yield Finding("note", subject, f"{count} {text}, e.g. {example}", count, example)


def _first_with(name: str, index: AnnotationIndex, rows: NDArray[np.int64]) -> int:
    """Return the first image that adds to a count; they are counted image by image."""
    while len(rows) > 1:
        half = rows[: len(rows) // 2]
        there = getattr(settled(index, half)[1], name)
        rows = half if there else rows[len(half) :]
    return int(rows[0])


def _images(
    split: str, files: CocoFiles, index: AnnotationIndex, rows: NDArray[np.int64], decode: bool
) -> Iterator[Finding]:
    names = [index.file_names[row] for row in rows.tolist()]
    problems = image_problems(
        files.annotations, files.image_dir, names, index.sizes[rows], decode=decode
    )
    for problem in problems:
        yield Finding("problem", f"{split} images", str(problem), problem.count, str(problem.path))
    if not problems:
        how = "decoded, all" if decode else "all"
        yield Finding("ok", f"{split} images", f"{len(names)}, {how} of the size that is said")


def _classes(names: tuple[str, ...], labels: Mapping[str, Labels]) -> Iterator[Finding]:
    """Say which classes cannot be learned, and which are not measured."""
    has = {split: np.bincount(of.classes, minlength=len(names)) > 0 for split, of in labels.items()}
    for mask, text in (
        (~has["train"], "classes have no box to train on"),
        (has["train"] & ~has["val"], "classes have no box to be scored on"),
    ):
        if mask.any() and any(has["train"]):
            example = names[int(np.flatnonzero(mask)[0])]
            message = f"{int(mask.sum())} {text}, e.g. {example!r}"
            yield Finding("note", "categories", message, int(mask.sum()), example)
