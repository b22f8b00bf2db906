"""Which images of a dataset a run uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qatval.core.errors import QatvalError
from qatval.core.files import read_regular
from qatval.data.coco import AnnotationIndex

Rule = Literal["all", "random", "first", "list"]

_MOST_BYTES = 2**26  # of a list: all of COCO's names take 2 MB
_ID_DIGITS = 20  # more than an id of 64 bits has
_LINES = "one image id or file name a line"


@dataclass(frozen=True)
class ImageList:
    """A user's own list, as it was when it was read.

    Attributes:
        path: Where it was.
        content: Its bytes.
    """

    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.content).hexdigest()


def read_list(path: Path) -> ImageList:
    """Read a user's own list of images; QatvalError if it cannot be read."""
    content = read_regular(path, _MOST_BYTES, expected=f"a text file with {_LINES}")
    return ImageList(path, content)


@dataclass(frozen=True)
class Selection:
    """Some images of one split.

    Attributes:
        rule: How they were chosen.
        rows: (N,), ascending positions in the index's `image_ids`.
        seed: What the draw depended on, None where nothing was drawn.
    """

    rule: Rule
    rows: NDArray[np.int64]
    seed: int | None = None

    def identity(self, index: AnnotationIndex) -> dict[str, Any]:
        """Say which images these are, in JSON-able form and the same wherever they lie."""
        image_ids = np.ascontiguousarray(index.image_ids[self.rows], dtype="<i8")
        return {
            "rule": self.rule,
            "seed": self.seed,
            "images": len(self.rows),
            "image_ids_sha256": hashlib.sha256(image_ids.tobytes()).hexdigest(),
        }


def draw_random(index: AnnotationIndex, count: int | None, seed: int) -> Selection:
    """Draw `count` images at random, or take all where there are no more.

    Every image gets a random number, in the order of the ids, and the smallest win. So a larger
    draw of the same seed contains the smaller one.
    """
    total = len(index.image_ids)
    if count is None or count >= total:
        return Selection("all", np.arange(total))
    # The raw stream of a bit generator is the part of numpy's randomness that never changes.
    numbers = np.random.PCG64(seed).random_raw(total)
    return Selection("random", np.sort(np.argsort(numbers, kind="stable")[:count]), seed)


def take_first(index: AnnotationIndex, count: int | None) -> Selection:
    """Take the `count` images of the smallest ids, or all where there are no more."""
    if count is None or count >= len(index.image_ids):
        return Selection("all", np.arange(len(index.image_ids)))
    return Selection("first", np.arange(count))


def take_listed(chosen: ImageList, indexes: Mapping[str, AnnotationIndex]) -> dict[str, Selection]:
    """Take the images of a list: one id or file name a line, `#` starts a comment line.

    An image counts for the split it belongs to; folders before a file name are ignored, written
    with slashes or, as on Windows, with backslashes. A line is looked up among the images of the
    annotation files and leads nowhere else.

    Returns:
        A selection for each split of which the list names at least one image.

    Raises:
        QatvalError: The list is no text, is empty, or names an image that no split has.
    """
    rows: dict[str, set[int]] = {split: set() for split in indexes}
    lookups = {split: _lookup(index) for split, index in indexes.items()}
    for number, line in enumerate(_lines(chosen), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        is_id = entry.isdecimal() and len(entry) <= _ID_DIGITS
        keys: tuple[int | str, ...] = (int(entry),) if is_id else _names(entry)
        found = [split for split, lookup in lookups.items() if lookup.keys() & keys]
        for split in found:
            rows[split].add(next(lookups[split][key] for key in keys if key in lookups[split]))
        if not found:
            raise QatvalError(
                f"{chosen.path}, line {number}: {entry!r:.200} is neither an image id nor a file "
                "name of this dataset; correct or remove the line"
            )
    if not any(rows.values()):
        raise QatvalError(f"{chosen.path}: names no image; expected {_LINES}")
    return {
        split: Selection("list", np.array(sorted(positions), np.int64))
        for split, positions in rows.items()
        if positions
    }


def _names(entry: str) -> tuple[str, ...]:
    slashed = entry.replace("\\", "/")
    return entry, slashed, PurePosixPath(slashed).name


def _lines(chosen: ImageList) -> list[str]:
    try:
        return chosen.content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise QatvalError(
            f"{chosen.path}: cannot be read (not UTF-8: {error.reason} at byte {error.start}); "
            f"save it as UTF-8, {_LINES}"
        ) from error


def _lookup(index: AnnotationIndex) -> dict[int | str, int]:
    by_id = {image_id: row for row, image_id in enumerate(index.image_ids.tolist())}
    by_name = {name: row for row, name in enumerate(index.file_names)}
    return {**by_id, **by_name}
