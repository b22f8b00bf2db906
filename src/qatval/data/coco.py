"""COCO's annotation format: read, turned into training labels, and written.

The only module that knows the format, beside `annotation_faults`, which says all that is wrong
with a file that this one refuses. Annotation files are untrusted input of up to half a
gigabyte, so they are decoded straight into typed records, without segmentations, and every
reference in them is checked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from qatval.core.errors import QatvalError

SPLITS = ("train", "val")

# Up to here a table of all ids finds them fifty times faster than a binary search; COCO's largest
# image id is 581,929.
_TABLE_LIMIT = 4_000_000


class Detection(TypedDict):
    """A detection in COCO's result format; ``bbox`` is x, y, width, height in px of the image."""

    image_id: int
    category_id: int
    bbox: list[float]
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

    Images and categories are sorted by id, annotations stand in the file's order. Values are the
    file's own: nothing is dropped or corrected here.

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


_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


# gc=False: records without cycles, a million of them; tracking them costs more than decoding.
class _Box(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    x: float
    y: float
    width: float
    height: float


class _Image(msgspec.Struct, gc=False):
    id: _Integer
    file_name: str
    height: _Pixels
    width: _Pixels


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Integer
    category_id: _Integer
    bbox: _Box
    area: float = math.nan
    iscrowd: _Integer = 0


class _Category(msgspec.Struct, gc=False):
    id: _Integer
    name: str


class _Document(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_annotations(path: Path) -> tuple[AnnotationIndex, str]:
    """Decode an annotation file.

    Returns:
        The index, and the SHA-256 of the very bytes it was decoded from.

    Raises:
        QatvalError: The file cannot be read, is not JSON, lacks a field, repeats an id, or has
            an annotation for an image or category that it does not list.
    """
    document, digest = _decode(path)
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
    if "\0" in "".join(file_names):
        raise QatvalError(f"{path}: a file name contains a NUL character; correct the file")
    records = [annotation.bbox for annotation in annotations]
    sides = [_column(records, side, np.float64) for side in _Box.__struct_fields__]
    boxes = np.stack(sides, axis=1)
    areas = _column(annotations, "area", np.float64)
    sizes = [_column(images, side, np.int32)[by_id] for side in ("height", "width")]
    index = AnnotationIndex(
        image_ids=image_ids,
        sizes=np.stack(sizes, axis=1),
        file_names=tuple(file_names[position] for position in by_id.tolist()),
        owners=_references(path, annotations, "image", image_ids),
        classes=_references(path, annotations, "category", category_ids),
        boxes=boxes,
        # An absent area is the box's, as pycocotools has it for results.
        areas=np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
        crowds=_column(annotations, "iscrowd", np.bool_),
        category_ids=category_ids,
        category_names=tuple(category.name for category in categories),
    )
    return index, digest


def write_annotations(index: AnnotationIndex, rows: NDArray[np.int64], path: Path) -> None:
    """Write the annotations of some images as a COCO file for pycocotools' box evaluation.

    Everything the original says about these images is in it, crowds and odd boxes too, except
    segmentations. Annotations are numbered from 1: pycocotools takes a detection matched with
    annotation 0 for an unmatched one.

    Args:
        index: A decoded annotation file.
        rows: (N,), ascending positions in `index.image_ids`.
        path: The file to write.
    """
    chosen, owners = index.annotations_of(rows)
    names = [index.file_names[row] for row in rows.tolist()]
    ids, (heights, widths) = index.image_ids[rows], index.sizes[rows].T
    document = {
        "info": {"description": "qatval subset"},
        "images": _records(id=ids, file_name=names, height=heights, width=widths),
        "annotations": _records(
            id=np.arange(1, len(chosen) + 1),
            image_id=ids[owners],
            category_id=index.category_ids[index.classes[chosen]],
            bbox=index.boxes[chosen],
            area=index.areas[chosen],
            iscrowd=index.crowds[chosen].astype(int),
        ),
        "categories": _records(id=index.category_ids, name=index.category_names),
    }
    path.write_bytes(msgspec.json.encode(document))


def _records(**columns: NDArray[Any] | Sequence[str]) -> list[dict[str, Any]]:
    values = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _decode(path: Path) -> tuple[_Document, str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QatvalError(
            f"{path}: cannot be read ({error.strerror}); expected a COCO annotation file"
        ) from error
    # Hashing releases the interpreter lock: on a second core it costs no time.
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hashlib.sha256, content)
        try:
            document = msgspec.json.decode(content, type=_Document)
        except msgspec.DecodeError as error:
            raise QatvalError(
                f"{path}: not a COCO instances file ({error}); unpack or download it again"
            ) from error
        return document, digest.result().hexdigest()


def _column(records: list[Any], field: str, dtype: Any) -> NDArray[Any]:
    return np.fromiter(map(attrgetter(field), records), dtype, len(records))


def _refuse_repeats(path: Path, kind: str, ids: NDArray[np.int64]) -> None:
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise QatvalError(f"{path}: {kind} id {repeated[0]} occurs twice; expected unique ids")


def _references(
    path: Path, annotations: list[_Annotation], kind: str, ids: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the position in `ids` of each annotation's image or category."""
    wanted = _column(annotations, f"{kind}_id", np.int64)
    positions = find_positions(ids, wanted)
    if len(unknown := wanted[positions < 0]):
        raise QatvalError(
            f"{path}: an annotation names {kind} id {unknown[0]}, which the file does not list; "
            "unpack or download the file again"
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
