"""COCO's annotation format: read into arrays, and written.

This module and `qatval.data.document` alone know the format, beside `annotation_faults`, which says
all that is wrong with a file that they refuse. Every reference within a file is checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from qatval.core.errors import QatvalError
from qatval.data.document import CONTROL, Annotation, Box, decode_document

SPLITS = ("train", "val")

# Up to here a table of all ids finds them fifty times faster than a binary search; COCO's largest
# image id is 581,929.
_TABLE_LIMIT = 4_000_000


class Detection(TypedDict):
    """A detection in COCO's result format; ``bbox`` is x, y, width, height in px of the image."""

    image_id: int
    category_id: int
    bbox: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]
    score: float


@dataclass(frozen=True)
class CocoFiles:
    """Where one split of a COCO dataset lies."""

    annotations: Path
    image_dir: Path

    @classmethod
    def of(cls, coco_root: Path, split: str) -> CocoFiles:
        """Return where COCO 2017's layout has a split, ``"train"`` or ``"val"``."""
        return cls(
            coco_root / "annotations" / f"instances_{split}2017.json", coco_root / f"{split}2017"
        )


@dataclass(frozen=True)
class AnnotationIndex:
    """An annotation file without what detection does not need.

    Images and categories are sorted by id, annotations stand in the file's order. As read, values
    are the file's own; what is dropped, cut or merged is decided in `qatval.data.labels` alone.

    Attributes:
        image_ids: (I,), ascending.
        sizes: (I, 2), height and width in px.
        file_names: I names, relative to the image folder.
        owners: (A,), each annotation's image, as a position in `image_ids`.
        classes: (A,), each annotation's category, as a position in `category_ids`.
        boxes: (A, 4), x, y of the top left corner, width, height in px.
        areas: (A,), of the segmentation, in square px.
        crowds: (A,).
        category_ids: (C,), ascending, often with gaps.
        category_names: C names.
        category_parents: C names of the categories above, empty where there is none; or nothing.
    """

    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    file_names: tuple[str, ...]
    owners: NDArray[np.int32]
    classes: NDArray[np.int32]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    category_parents: tuple[str, ...] = ()

    def annotations_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Find the annotations of the images at (N,) ascending positions, image by image.

        Returns:
            (A',) positions of the annotations, and (A',) for each its image's position in `rows`.
        """
        place = np.full(len(self.image_ids), -1)
        place[rows] = np.arange(len(rows))
        owners = place[self.owners]
        chosen = np.flatnonzero(owners >= 0)
        chosen = chosen[np.argsort(owners[chosen], kind="stable")]
        return chosen, owners[chosen]


def coco_files(coco_root: Path) -> dict[str, CocoFiles]:
    """Locate the files of both splits in COCO 2017's layout.

    Raises:
        QatvalError: The root, an annotation file or an image folder is missing.
    """
    if not coco_root.is_dir():
        raise QatvalError(
            f"{coco_root}: no such COCO folder; unpack COCO 2017 there, name yours with "
            "--coco-root, or draw the embedded one with 'qatval dataset shapes --out DIR'"
        )
    found = {}
    for split in SPLITS:
        files = CocoFiles.of(coco_root, split)
        for path, what, there in (
            (files.annotations, "annotation file", files.annotations.is_file()),
            (files.image_dir, "image folder", files.image_dir.is_dir()),
        ):
            if not there:
                raise QatvalError(
                    f"{path}: no such {what}; --coco-root must hold annotations/, train2017/ and "
                    "val2017/ as COCO 2017 unpacks"
                )
        found[split] = files
    return found


def read_annotations(path: Path) -> tuple[AnnotationIndex, str]:
    """Decode an annotation file.

    Returns:
        The index, and the SHA-256 of the very bytes it was decoded from.

    Raises:
        QatvalError: The file cannot be read, is not JSON, lacks a field, repeats an id, or has
            an annotation for an image or category that it does not list.
    """
    document, digest = decode_document(path)
    images, annotations = document.images, document.annotations
    categories = sorted(document.categories, key=attrgetter("id"))
    category_ids = _column(categories, "id", np.int64)
    _refuse_repeats(path, "category", category_ids)
    # Columns are sorted instead of records: records out of their order in memory are slow to read.
    image_ids = _column(images, "id", np.int64)
    by_id = np.argsort(image_ids, kind="stable")
    image_ids = image_ids[by_id]
    _refuse_repeats(path, "image", image_ids)
    file_names = [image.file_name for image in images]
    together = "".join(file_names)
    if CONTROL.search(together):
        name = next(name for name in file_names if CONTROL.search(name))
        raise QatvalError(f"{path}: file name {name!r:.200} has a control character; correct it")
    if "\\" in together:
        file_names = [_with_slashes(path, name) for name in file_names]
    records = [annotation.bbox for annotation in annotations]
    sides = [_column(records, side, np.float64) for side in Box.__struct_fields__]
    boxes = np.stack(sides, axis=1)
    areas = _column(annotations, "area", np.float64)
    with np.errstate(over="ignore"):
        box_areas = boxes[:, 2] * boxes[:, 3]
    sizes = [_column(images, side, np.int32)[by_id] for side in ("height", "width")]
    index = AnnotationIndex(
        image_ids=image_ids,
        sizes=np.stack(sizes, axis=1),
        file_names=tuple(file_names[position] for position in by_id.tolist()),
        owners=_references(path, annotations, "image", image_ids),
        classes=_references(path, annotations, "category", category_ids),
        boxes=boxes,
        # An absent area is the box's, as pycocotools has it for results.
        areas=np.where(np.isnan(areas), box_areas, areas),
        crowds=_column(annotations, "iscrowd", np.bool_),
        category_ids=category_ids,
        category_names=tuple(category.name for category in categories),
        category_parents=tuple(
            _writable(parent) if isinstance(parent, str) else ""
            for parent in map(attrgetter("supercategory"), categories)
        ),
    )
    return index, digest


def write_annotations(index: AnnotationIndex, path: Path) -> None:
    """Write an index as a COCO file for pycocotools' box evaluation, without segmentations.

    Annotations are numbered from 1: pycocotools takes a detection matched with annotation 0 for an
    unmatched one.
    """
    heights, widths = index.sizes.T
    document = {
        "info": {"description": "qatval subset"},
        "images": _records(
            id=index.image_ids, file_name=index.file_names, height=heights, width=widths
        ),
        "annotations": _records(
            id=np.arange(1, len(index.owners) + 1),
            image_id=index.image_ids[index.owners],
            category_id=index.category_ids[index.classes],
            bbox=index.boxes,
            area=index.areas,
            iscrowd=index.crowds.astype(int),
        ),
        "categories": _records(id=index.category_ids, name=index.category_names),
    }
    path.write_bytes(msgspec.json.encode(document))


def _records(**columns: NDArray[Any] | Sequence[str]) -> list[dict[str, Any]]:
    values = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _column(records: list[Any], field: str, dtype: Any) -> NDArray[Any]:
    return np.fromiter(map(attrgetter(field), records), dtype, len(records))


def _writable(text: str) -> str:
    """Return a text without halves of characters, which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _refuse_repeats(path: Path, kind: str, ids: NDArray[np.int64]) -> None:
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise QatvalError(f"{path}: {kind} id {repeated[0]} occurs twice; expected unique ids")


def _with_slashes(path: Path, name: str) -> str:
    r"""Return a file name as tools on Windows mean it: `images\\a.jpg` lies in the folder `images`.

    A file of a real dataset whose name itself holds a backslash is not known to us; if there is
    one it is not found, and said to be missing.
    """
    if re.match(r"[A-Za-z]:|\\\\", name):
        raise QatvalError(
            f"{path}: file name {name!r:.200} is an absolute path of Windows; expected names "
            "relative to the image folder"
        )
    return name.replace("\\", "/")


def _references(
    path: Path, annotations: list[Annotation], kind: str, ids: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the position in `ids` of each annotation's image or category."""
    wanted = _column(annotations, f"{kind}_id", np.int64)
    positions = find_positions(ids, wanted)
    if len(unknown := wanted[positions < 0]):
        number = np.flatnonzero(positions < 0)[0]
        raise QatvalError(
            f"{path}: annotations[{number}] names {kind} id {unknown[0]}, which the file does not "
            f"list ({len(unknown)} of {len(wanted)} annotations name none that it does); list the "
            f"{kind} or remove what names it"
        )
    return positions


def find_positions(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
    """Find (N,) wanted ids, in any order, among (I,) ascending unique ones.

    Returns:
        (N,) positions in `ids`, -1 where there is none.
    """
    if len(ids) and ids[0] >= 0 and ids[-1] < _TABLE_LIMIT:
        table = np.full(ids[-1] + 2, -1, np.int32)
        table[ids] = np.arange(len(ids))
        outside = (wanted < 0) | (wanted > ids[-1])
        return table[np.where(outside, len(table) - 1, wanted)]
    positions = np.searchsorted(ids, wanted)
    padded = np.append(ids, -1)  # so that a position past the end can be looked up
    found = (positions < len(ids)) & (padded[positions] == wanted)
    return np.where(found, positions, -1).astype(np.int32)
