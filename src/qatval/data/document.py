"""A COCO annotation file, decoded: fast where it is as COCO writes it, else value by value.

Annotation files are untrusted input, of half a gigabyte where they are COCO's. They are decoded
straight into typed records, without segmentations. Only where that fails are they decoded again,
with whatever is in them, and each value is read as pycocotools reads it or refused, naming the
record and the field.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET

from qatval.core.errors import QatvalError
from qatval.core.files import read_regular

CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")
"""No file is named so by anybody who means well: a terminal obeys these characters."""

MOST_BYTES = 2**31
"""Of an annotation file: four times COCO's, twice LVIS'. In memory it is three times as large."""

UNDECODABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What msgspec raises for what it cannot decode."""

_BOM = b"\xef\xbb\xbf"
_TABLES = ("images", "annotations", "categories")
_WHOLE = 2**53  # up to here a float holds every integer
_SHOWN = 40  # characters of a value in a message

_TEXT_FOR_AN_ID = (
    "; ids as text come from PyLabel, COCO Camera Traps and converters that take file names for "
    "ids: number the records, and write the numbers wherever the ids are named"
)

_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


# gc=False: records without cycles, a million of them; tracking them costs more than decoding.
class Box(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A box in px: its top left corner, its width and height."""

    x: float
    y: float
    width: float
    height: float


class Image(msgspec.Struct, gc=False):
    """An image; its sides are in px."""

    id: _Integer
    file_name: str
    height: _Pixels
    width: _Pixels


class Annotation(msgspec.Struct, gc=False):
    """An annotation; its area is in square px, NaN where the file has none."""

    image_id: _Integer
    category_id: _Integer
    bbox: Box
    area: float = math.nan
    iscrowd: _Integer = 0


class Category(msgspec.Struct, gc=False):
    """A category; what is above it is a name, if it is anything."""

    id: _Integer
    name: str
    supercategory: Any = None


class Document(msgspec.Struct):
    """An annotation file."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def decode_document(path: Path) -> tuple[Document, str]:
    """Decode an annotation file, a UTF-8 BOM at its beginning or not.

    Returns:
        The document, and the SHA-256 of the very bytes it was decoded from.

    Raises:
        QatvalError: The file cannot be read, is not JSON or not COCO's, or holds a value that
            pycocotools could not use either; the message names the record and the field.
    """
    content = read_annotation_file(path)
    # Hashing releases the interpreter lock: on a second core it costs no time.
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hashlib.sha256, content)
        try:
            document = msgspec.json.decode(content.removeprefix(_BOM), type=Document)
        except UNDECODABLE:
            document = _read_odd(path, content)
        return document, digest.result().hexdigest()


def read_annotation_file(path: Path) -> bytes:
    """Return the bytes of an annotation file; QatvalError if they cannot be read."""
    return read_regular(path, MOST_BYTES, expected="a COCO annotation file")


# -- the second path: any value, looked at one by one ------------------------------------------


class _OddImage(msgspec.Struct, gc=False):
    id: Any = UNSET
    file_name: Any = UNSET
    height: Any = UNSET
    width: Any = UNSET


class _OddAnnotation(msgspec.Struct, gc=False):
    id: Any = UNSET
    image_id: Any = UNSET
    category_id: Any = UNSET
    bbox: Any = UNSET
    area: Any = UNSET
    iscrowd: Any = UNSET


class _OddCategory(msgspec.Struct, gc=False):
    id: Any = UNSET
    name: Any = UNSET
    supercategory: Any = UNSET


class _OddDocument(msgspec.Struct):
    images: list[_OddImage]
    annotations: list[_OddAnnotation]
    categories: list[_OddCategory]


_FIELDS = tuple(
    {
        field: None
        for record in (_OddDocument, _OddImage, _OddAnnotation, _OddCategory)
        for field in record.__struct_fields__
    }
)


class RefusedValueError(Exception):
    """A value of a record that is not what it must be; says so without naming the record."""


_Odd = TypeVar("_Odd", _OddImage, _OddAnnotation, _OddCategory)
_Made = TypeVar("_Made")


def _read_odd(path: Path, content: bytes) -> Document:
    try:
        odd = msgspec.json.decode(content.removeprefix(_BOM), type=_OddDocument)
    except UNDECODABLE as error:
        # Python's json reads NaN and Infinity, so pycocotools does.
        odd = msgspec.convert(_tables(path, _python_json(path, content, error)), _OddDocument)
    return Document(
        images=_read_each(path, "images", odd.images, _image),
        annotations=_read_each(path, "annotations", odd.annotations, _annotation),
        categories=_read_each(path, "categories", odd.categories, _category),
    )


def _python_json(path: Path, content: bytes, reason: Exception) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"), object_hook=_needed)
    except RecursionError as error:
        raise QatvalError(
            f"{path}: not a COCO instances file: something in it is nested hundreds of levels "
            "deep; correct it or export it again"
        ) from error
    except ValueError as error:
        cut = "truncated" in str(reason) or "Unterminated" in str(error)
        said = "but a truncated one; unpack, download or export it again" if cut else None
        if not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            reason = ValueError("it has an integer of thousands of digits")
        said = _no_json(content, error) or said or f"({reason}); correct it or export it again"
        raise QatvalError(f"{path}: not a COCO instances file {said}") from error


def _needed(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is not read: segmentations are most of a file, and keys may be any text."""
    return {key: record[key] for key in _FIELDS if key in record}


def _no_json(content: bytes, error: Exception) -> str | None:
    """Say what a file that is not JSON is, and what to do, where that can be told."""
    start = content[:64].lstrip()
    if not start:
        return "but empty; export or download it again"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "in UTF-8 but UTF-16 text; save it as UTF-8"
    if content.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")):
        return "but a compressed one; unpack it"
    if start.startswith(b"version https://git-lfs"):
        return "but a pointer of Git LFS; 'git lfs pull' gets the file"
    if start.startswith(b"<"):
        return "but a web page or XML; download or export the JSON itself"
    if isinstance(error, UnicodeDecodeError) and start.startswith((b"{", b"[")):
        return f"in UTF-8 (byte {error.start} is not); save it as UTF-8"
    return None


def _tables(path: Path, document: Any) -> Mapping[str, Sequence[Any]]:
    """Return the three lists of records; the first thing that is none of them is refused."""
    expected = "expected an object that holds the lists images, annotations and categories"
    if not isinstance(document, dict):
        what = "a list, as results are" if isinstance(document, list) else _shown(document)
        raise QatvalError(f"{path}: not a COCO instances file but {what}; {expected}")
    for table in _TABLES:
        records = document.get(table, UNSET)
        if not isinstance(records, list):
            raise QatvalError(
                f"{path}: not a COCO instances file: `{table}` is {_shown(records)}; {expected}"
            )
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                raise QatvalError(
                    f"{path}: {table}[{number}] is {_shown(record)}, expected an object; correct "
                    "the file or its export"
                )
    return document


def _read_each(
    path: Path, table: str, records: Sequence[_Odd], read: Callable[[_Odd], _Made]
) -> list[_Made]:
    made = []
    for number, record in enumerate(records):
        try:
            made.append(read(record))
        except RefusedValueError as refused:
            named = "" if record.id is UNSET else f" (id {_shown(record.id)})"
            raise QatvalError(f"{path}: {table}[{number}]{named}: {refused}") from None
    return made


def _image(odd: _OddImage) -> Image:
    return Image(
        id=read_id("id", odd.id),
        file_name=_text("file_name", odd.file_name),
        height=read_side("height", odd.height),
        width=read_side("width", odd.width),
    )


def _annotation(odd: _OddAnnotation) -> Annotation:
    return Annotation(
        image_id=read_id("image_id", odd.image_id),
        category_id=read_id("category_id", odd.category_id),
        bbox=_box(odd.bbox),
        area=math.nan if odd.area in (UNSET, None) else read_number("area", odd.area),
        iscrowd=read_flag("iscrowd", odd.iscrowd),
    )


def _category(odd: _OddCategory) -> Category:
    name = odd.name
    return Category(
        id=read_id("id", odd.id),
        name=str(name) if type(name) is int else _text("name", name),
        supercategory=odd.supercategory,
    )


def read_id(field: str, value: Any) -> int:
    """Read an id, also a whole float; RefusedValueError for all else."""
    whole = _whole(value)
    if whole is None:
        remedy = _TEXT_FOR_AN_ID if isinstance(value, str) else ""
        raise _unlike(field, value, "an integer", remedy)
    if not -(2**63) <= whole < 2**63:
        raise _unlike(field, value, "an integer of at most 64 bits")
    return whole


def read_side(field: str, value: Any) -> int:
    """Read a side of an image in px; RefusedValueError for what is none."""
    whole = _whole(value)
    if whole is None or not 1 <= whole < 2**31:
        remedy = "; write the image's own size"
        raise _unlike(field, value, "a number of pixels, at least 1", remedy)
    return whole


def read_flag(field: str, value: Any) -> int:
    """Read what stands for yes or no; RefusedValueError for all else."""
    if value is UNSET or value is None or (isinstance(value, float) and math.isnan(value)):
        return 0
    if isinstance(value, bool):
        return int(value)
    whole = _whole(value)
    if whole is None:
        raise _unlike(field, value, "0, 1, true, false, null or nothing")
    return int(whole != 0)


def _box(value: Any) -> Box:
    if not isinstance(value, list) or len(value) != 4:
        raise _unlike("bbox", value, "four numbers: x, y, width and height in pixels")
    return Box(*(read_number(f"bbox[{place}]", side) for place, side in enumerate(value)))


def read_number(field: str, value: Any) -> float:
    """Read a number; RefusedValueError for all else."""
    if type(value) is int or isinstance(value, float):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _unlike(field, value, "a number")


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _unlike(field, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _unlike(field, ascii(value), "text that can be written as UTF-8") from None
    return value


def _whole(value: Any) -> int | None:
    """Return an integer, also one that was written as a float; None for all else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= _WHOLE:
        return int(value)
    return None


def _unlike(field: str, value: Any, expected: str, remedy: str = "") -> RefusedValueError:
    return RefusedValueError(
        f"{field} is {_shown(value)}, expected {expected}{remedy or '; correct the export'}"
    )


def _shown(value: Any) -> str:
    if value is UNSET:
        return "missing"
    try:
        text = json.dumps(value, default=str)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
