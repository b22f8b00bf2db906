"""Image files held against what the annotations say of them, before anything is trained on them.

Names come from a file that anybody may have written: they have to lie within the image folder, as
written. Links that lie there are followed wherever they lead, and so is a linked image folder:
whoever laid out the folder made them. Only regular files are opened.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qatval.core.environment import MOST_PIXELS
from qatval.core.errors import QatvalError
from qatval.core.progress import Progress
from qatval.data.decoding import (
    MOST_BYTES,
    Size,
    TooLargeError,
    decoded_size,
    header_size,
    looks_like_an_image,
    quiet_decoder,
    refuse_too_large,
    stored_size,
)
from qatval.data.document import CONTROL

Kind = Literal["name", "missing", "unreadable", "too large", "not an image", "damaged", "size"]
"""What can be wrong with an image, in the order in which it is looked for."""

_SIDE_BY_SIDE = 4 * (os.cpu_count() or 1)  # threads: they wait for the disk, or decode
_AT_A_TIME = 256  # images that one thread takes at once
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[\\/]|\\\\")  # on Windows too

_FETCH = "fetch the image again, or remove it from {annotations}"

# What is said of all images that have a fault of this kind, and what to do.
_SAYINGS: dict[Kind, tuple[str, str]] = {
    "name": (
        "are named so",
        "write names within the image folder, with /, into {annotations}",
    ),
    "missing": (
        "are missing",
        "put them there (COCO's are in {folder}.zip), or correct {annotations}",
    ),
    "unreadable": ("cannot be read", "put an image file there that you may read"),
    "too large": (
        "are too large",
        "scale them down, and with them their sizes and boxes in {annotations}",
    ),
    "not an image": ("are no images", _FETCH),
    "damaged": ("are damaged", _FETCH),
    "size": (
        "have another size",
        "write the sizes of the images as decoded, and boxes on them, into {annotations}",
    ),
}


class Fault(NamedTuple):
    """What is wrong with one image: its kind and what came where what was expected."""

    kind: Kind
    found: str


_Seen = Fault | Literal["doubtful"] | None
"""What is wrong with an image, None if nothing is, ``"doubtful"`` if only decoding can tell."""


@dataclass(frozen=True)
class ImageProblem:
    """One kind of fault and the images that have it.

    Attributes:
        kind: What is wrong.
        path: The first image that has it, in the order of the ids.
        found: What came with that one, and what was expected.
        count: How many have it.
        how_many: The same in words, e.g. ``"3 of 40 images are missing"``.
        remedy: What to do.
    """

    kind: Kind
    path: Path
    found: str
    count: int
    how_many: str
    remedy: str

    def __str__(self) -> str:
        """Return one line: the image, what is wrong, how many, what to do."""
        text = f"{self.path}: {self.found}; {self.how_many}; {self.remedy}"
        return " ".join(text.splitlines())  # a file name may hold anything


def refuse_bad_images(
    annotations: Path,
    image_dir: Path,
    file_names: Sequence[str],
    sizes: NDArray[np.integer],
    *,
    decode: bool = False,
) -> None:
    """Look at images and accept all or none; the arguments are those of `image_problems`.

    Raises:
        QatvalError: Images are not what `annotations` says; one line about the first of them.
    """
    problems = image_problems(annotations, image_dir, file_names, sizes, decode=decode)
    if problems:
        more = "; 'qatval dataset check' lists what else is wrong" if problems[1:] else ""
        raise QatvalError(f"{problems[0]}{more}")


def image_problems(
    annotations: Path,
    image_dir: Path,
    file_names: Sequence[str],
    sizes: NDArray[np.integer],
    *,
    decode: bool = False,
) -> list[ImageProblem]:
    """Look at images, side by side, with a progress line on a terminal.

    Args:
        annotations: The file that the names and sizes are from, for messages.
        image_dir: Folder that the names are relative to.
        file_names: N names.
        sizes: (N, 2), height and width in px.
        decode: Decode every image whole instead of trusting its first and last bytes.

    Returns:
        A problem for each kind that was found, in the order of `Kind`.
    """
    total, folder = len(file_names), str(image_dir)
    images = [(name, Size(*size)) for name, size in zip(file_names, sizes.tolist(), strict=True)]
    some = (images[at : at + _AT_A_TIME] for at in range(0, total, _AT_A_TIME))
    seen: list[_Seen] = []
    with (
        warnings.catch_warnings(action="ignore"),  # Pillow's, of what is said in one line
        Progress(image_dir.name) as progress,
        ThreadPoolExecutor(_SIDE_BY_SIDE) as pool,
    ):
        progress.stage("looking at images", total)
        for found in pool.map(partial(_look_at_some, folder, decode), some):
            seen += found
            progress.step(len(seen))
        doubtful = [row for row, what in enumerate(seen) if what == "doubtful"]
        if doubtful:
            progress.stage("decoding images", len(doubtful))
            with quiet_decoder():
                decoded = pool.map(partial(_decode, folder), (images[row] for row in doubtful))
                for done, row in enumerate(doubtful, start=1):
                    seen[row] = next(decoded)
                    progress.step(done)
    faults = {row: fault for row, fault in enumerate(seen) if isinstance(fault, Fault)}
    problems = []
    for kind, (said, remedy) in _SAYINGS.items():
        if rows := [row for row, fault in faults.items() if fault.kind == kind]:
            first = file_names[rows[0]]
            problems.append(
                ImageProblem(
                    kind=kind,
                    path=annotations if kind == "name" else Path(f"{image_dir}/{first}"),
                    found=faults[rows[0]].found,
                    count=len(rows),
                    how_many=f"{len(rows)} of {total} images {said}",
                    remedy=remedy.format(annotations=annotations.name, folder=image_dir.name),
                )
            )
    return problems


def folders_of(image_dir: Path, file_names: Sequence[str]) -> list[Path]:
    """Return every folder in which an image, or what a link stands for, can disappear."""
    below = {PurePosixPath(name).parent for name in file_names if "/" in name}
    parts = {image_dir}.union(*({image_dir / p, *(image_dir / p).parents} for p in below))
    folders = {folder for folder in parts if folder.is_relative_to(image_dir)}
    for folder in list(folders):
        with suppress(OSError, ValueError), os.scandir(folder) as listing:
            links = [entry.path for entry in listing if entry.is_symlink()]
            folders |= {Path(os.path.realpath(link)).parent for link in links}
    return sorted(folders)


def _look_at_some(folder: str, decode: bool, images: list[tuple[str, Size]]) -> list[_Seen]:
    return [_look_at(folder, name, size, decode=decode) for name, size in images]


def _look_at(folder: str, name: str, expected: Size, *, decode: bool) -> _Seen:
    """Say what is wrong with one image, as far as can be said without decoding it."""
    if fault := _name_fault(name):
        return fault
    path = f"{folder}/{name}"
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path for each of COCO's images takes seconds)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            return Fault("unreadable", f"is {kind}, expected an image file")
        if not status.st_size:
            return Fault("not an image", "is an empty file, expected an image")
        if status.st_size > MOST_BYTES:
            return _too_large(f"{status.st_size} bytes", MOST_BYTES)
        with open(path, "rb") as file:  # noqa: PTH123
            size = header_size(file, status.st_size)
        if decode or size != expected:
            return "doubtful"
        refuse_too_large(*size)
        return None
    except TooLargeError as error:
        return _too_large(error, MOST_PIXELS)
    except OSError as error:
        return _unread(folder, name, error)


def _decode(folder: str, image: tuple[str, Size]) -> _Seen:
    """Say what is wrong with one image by decoding it; None if it is what is expected."""
    name, expected = image
    try:
        content = Path(folder, name).read_bytes()
    except OSError as error:
        return _unread(folder, name, error)
    try:
        return _decoded_fault(content, name, expected)
    except TooLargeError as error:
        return _too_large(error, MOST_PIXELS)


def _too_large(found: object, most: int) -> Fault:
    return Fault("too large", f"has {found}, and at most {most:,} are decoded")


def _unread(folder: str, name: str, error: OSError) -> Fault:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return _missing(folder, name)
    return Fault("unreadable", f"cannot be read ({error.strerror or error})")


def _name_fault(name: str) -> Fault | None:
    if _ABSOLUTE.match(name):
        said = "is an absolute file name"
    elif CONTROL.search(name):
        said = "has a control character"
    elif ".." in name and ".." in PurePosixPath(name).parts:
        said = "leads out of the image folder"
    elif not name.strip("./"):
        said = "names no file"
    else:
        return None
    return Fault("name", f"file_name {name!r:.200} {said}, expected one within the image folder")


def _missing(folder: str, name: str) -> Fault:
    path = Path(folder, name)
    if path.is_symlink():
        target = path.readlink()
        return Fault("missing", f"is a link to '{target}', where no file is")
    if "\\" in name:
        said = f"file_name {name!r:.200} has backslashes, expected / between folders"
        return Fault("name", said)
    with suppress(OSError):
        for other in path.parent.iterdir():
            if other.name.lower() == path.name.lower():
                return Fault("missing", f"no such image file, but there is {other.name!r}")
    return Fault("missing", "no such image file")


def _decoded_fault(content: bytes, name: str, expected: Size) -> Fault | None:
    size = decoded_size(content, name)
    if size is None:
        return _undecodable(content)
    if size == expected:
        return None
    (height, width), (said_height, said_width) = size, expected
    turned = ""
    if size == expected[::-1]:
        turned = ", which are swapped"
        if stored_size(content) == expected:
            turned = (
                ", as before its EXIF orientation is applied (remove that if boxes are so, too)"
            )
    return Fault(
        "size",
        f"is {width} x {height} px when decoded, but the annotations say width {said_width} and "
        f"height {said_height}{turned}",
    )


def _undecodable(content: bytes) -> Fault:
    start = content[:32]
    if looks_like_an_image(content):
        return Fault("damaged", f"is an image cut short or damaged ({len(content)} bytes)")
    if start[4:8] == b"ftyp":
        return Fault("not an image", "is a HEIC, AVIF or video file that cannot be decoded here")
    begins = start.lstrip()[:15].decode("ascii", "replace")
    return Fault("not an image", f"is not an image, it begins with {begins!r}")
