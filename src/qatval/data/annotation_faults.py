"""All that is wrong with the records of an annotation file, where `read_annotations` refuses it.

That names the first thing it cannot use. This counts every kind, and reads what is whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qatval.core.errors import QatvalError
from qatval.data.coco import AnnotationIndex, read_annotations
from qatval.data.document import (
    CONTROL,
    UNDECODABLE,
    RefusedValueError,
    read_annotation_file,
    read_flag,
    read_id,
    read_number,
    read_side,
)


class Faults(dict[str, tuple[int, str]]):
    """How often something was found and the first example, by what was found."""

    def add(self, text: str, example: object) -> None:
        """Count a record."""
        count, first = self.get(text, (0, f"{example!r:.120}"))
        self[text] = count + 1, first


def read_whole_records(path: Path) -> tuple[Faults, tuple[AnnotationIndex, str] | None]:
    """Read an annotation file without the records that have faults.

    Returns:
        The faults, and what `read_annotations` gives for the rest: None where the file is no JSON
        of this kind at all. The digest is the rest's, not the file's.
    """
    faults = Faults()
    try:
        content = read_annotation_file(path).removeprefix(b"\xef\xbb\xbf")
        whole = _whole_records(msgspec.json.decode(content, type=_Document), faults)
        with tempfile.TemporaryDirectory() as folder:
            rest = Path(folder, path.name)
            rest.write_bytes(msgspec.json.encode(whole))
            return faults, read_annotations(rest)
    except (OSError, QatvalError, *UNDECODABLE):
        return faults, None


class _Image(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = 0
    iscrowd: Any = 0


class _Category(msgspec.Struct, gc=False):
    id: Any = None
    name: Any = None


_Record = TypeVar("_Record", _Image, _Category)


class _Document(msgspec.Struct):
    """An annotation file in which any value may be wrong."""

    images: list[_Image] = []
    annotations: list[_Annotation] = []
    categories: list[_Category] = []


def _whole_records(document: _Document, faults: Faults) -> dict[str, Any]:
    """Return a document of the records that are whole; count the others."""
    for name in ("images", "annotations", "categories"):
        if not getattr(document, name):
            faults.add(f"has no {name}", name)
    categories = _with_new_ids("category", document.categories, _is_category, faults)
    images = _with_new_ids("image", document.images, _is_image, faults)
    listed = _ids(document.images), _ids(document.categories)
    annotations = [a for a in document.annotations if _is_annotation(a, *listed, faults)]
    # Those of an image or category that is not whole itself go with it.
    image_ids, category_ids = _ids(images), _ids(categories)
    annotations = [
        a for a in annotations if a.image_id in image_ids and a.category_id in category_ids
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _ids(records: Sequence[_Image | _Category]) -> set[int]:
    return {record.id for record in records if _is_integer(record.id)}


def _with_new_ids(
    kind: str,
    records: Sequence[_Record],
    is_whole: Callable[[_Record, Faults], bool],
    faults: Faults,
) -> list[_Record]:
    seen: set[int] = set()
    whole = []
    for record in records:
        if not _is_integer(record.id):
            faults.add(f"{kind} id is no integer", record.id)
        elif record.id in seen:
            faults.add(f"{kind} id occurs again", record.id)
        elif is_whole(record, faults):
            seen.add(record.id)
            whole.append(record)
    return whole


def _is_category(category: _Category, faults: Faults) -> bool:
    if isinstance(category.name, str) or type(category.name) is int:
        return True
    faults.add("category without a name", category.id)
    return False


def _is_image(image: _Image, faults: Faults) -> bool:
    if not isinstance(image.file_name, str) or CONTROL.search(image.file_name):
        faults.add("image without a proper file_name", image.id)
    elif not all(_reads(read_side, side) for side in (image.height, image.width)):
        faults.add("image height or width is no positive integer", image.file_name)
    else:
        return True
    return False


def _is_annotation(
    annotation: _Annotation, images: set[int], categories: set[int], faults: Faults
) -> bool:
    box = annotation.bbox
    if not isinstance(box, list) or len(box) != 4 or not all(_reads(read_number, b) for b in box):
        faults.add("annotation whose bbox is not four numbers", box)
    elif annotation.area is not None and not _reads(read_number, annotation.area):
        faults.add("annotation whose area is no number", annotation.area)
    elif not _reads(read_flag, annotation.iscrowd):
        faults.add("annotation whose iscrowd is not 0 or 1", annotation.iscrowd)
    elif not _is_integer(annotation.image_id) or annotation.image_id not in images:
        faults.add("annotation for an image id that is not listed", annotation.image_id)
    elif not _is_integer(annotation.category_id) or annotation.category_id not in categories:
        faults.add("annotation for a category id that is not listed", annotation.category_id)
    else:
        return True
    return False


def _is_integer(value: object) -> bool:
    return _reads(read_id, value)


def _reads(read: Callable[[str, Any], object], value: object) -> bool:
    """Say whether a value is one that `read_annotations` takes."""
    try:
        read("", value)
    except RefusedValueError:
        return False
    return True
