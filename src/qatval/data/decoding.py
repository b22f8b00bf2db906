"""What an image file decodes to in training, told from its bytes, within bounds.

Ultralytics decodes with OpenCV, which turns an image upright by its EXIF orientation. Reading
headers acquits nearly every image (JPEG, PNG and WebP whose last bytes are there); only decoding
the way Ultralytics does it condemns one, so a file that it can read is never refused for what its
header looks like. A few bytes can stand for gigabytes of pixels: how many a header announces is
looked at before anything is decoded, and large images are decoded one at a time.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from qatval.core.environment import MOST_PIXELS

MOST_BYTES = 4 * MOST_PIXELS
"""A file may be as large as this; one of `MOST_PIXELS` in three bytes each is smaller."""

_LARGE = 2**24  # px: two of 64 MB as decoded are not held side by side
_PAGE = 2**16  # px: what the smallest page of a TIFF counts
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
_HEADERS: dict[bytes, type[ImageFile.ImageFile]] = {
    _JPEG: JpegImageFile,
    _PNG: PngImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"GIF8": GifImageFile,
    b"\0\0\0\x0cjP  ": Jpeg2KImageFile,
    b"\xff\x4f\xff\x51": Jpeg2KImageFile,
}
_WEBP_ANIMATED, _WEBP_EXIF = 0x02, 0x08
_UNREADABLE = Exception  # of damaged files Pillow's readers raise nearly anything

_large_images = threading.Lock()


class Size(NamedTuple):
    """Height and width in px."""

    height: int
    width: int


class TooLargeError(Exception):
    """An image of more pixels than are decoded; says how many."""


def refuse_too_large(height: int, width: int, *, pixels: int | None = None) -> None:
    """Raise TooLargeError for more than `MOST_PIXELS`: of height x width, or of all its pages."""
    if (height * width if pixels is None else pixels) > MOST_PIXELS:
        raise TooLargeError(f"{width} x {height} px")


def header_size(file: BinaryIO, length: int) -> Size | None:
    """Return the size that decoding will give; None where only decoding can tell."""
    start = file.read(32)
    file.seek(0)
    with suppress(_UNREADABLE):
        image: ImageFile.ImageFile
        if start.startswith(_JPEG):
            image = JpegImageFile(file)
            whole = _tail(file, length, 2) == _JPEG_END
        elif start.startswith(_PNG):
            image = PngImageFile(file)
            tail = _tail(file, length, 4096)
            whole = tail.endswith(_PNG_END) and b"eXIf" not in tail
        else:
            return _webp_size(start, length)
        orientation = 0
        if exif := image.info.get("exif"):
            # Not getexif(): it also takes an orientation from XMP, which OpenCV does not know.
            tags = Image.Exif()
            tags.load(exif)
            orientation = tags.get(_ORIENTATION, 0)
        if whole and orientation not in _SIDEWAYS:
            return Size(image.height, image.width)
        if whole and isinstance(image, JpegImageFile):
            return Size(image.width, image.height)
    return None  # which of the other formats are turned depends on the version of OpenCV


def decoded_image(content: bytes, name: str) -> NDArray[np.uint8] | None:
    """Decode a file as Ultralytics does.

    Args:
        content: The whole file.
        name: The file's; its ending decides who decodes it.

    Returns:
        The image, upright, ``(height, width, 3)`` in the order blue, green, red; None where it
        cannot be decoded.

    Raises:
        TooLargeError: It has more than `MOST_PIXELS`.
    """
    pixels = _announced(content, name)
    with nullcontext() if pixels is not None and pixels <= _LARGE else _large_images:
        return _decoded(content, name)


def decoded_size(content: bytes, name: str) -> Size | None:
    """Return the size of what `decoded_image` returns, which says more."""
    image = decoded_image(content, name)
    return None if image is None else Size(*image.shape[:2])


def stored_size(content: bytes) -> Size | None:
    """Return the size of a JPEG before it is turned; None for all else."""
    with suppress(_UNREADABLE):
        image = JpegImageFile(io.BytesIO(content))
        return Size(image.height, image.width)
    return None


def looks_like_an_image(content: bytes) -> bool:
    """Say whether the first bytes are those of a format that can be decoded."""
    return content.startswith(tuple(_HEADERS)) or _is_webp(content)


@contextmanager
def quiet_decoder() -> Iterator[None]:
    """Keep OpenCV from reporting in its own words what is about to be said in one line."""
    import cv2

    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)


def _tail(file: BinaryIO, length: int, count: int) -> bytes:
    file.seek(max(length - count, 0))
    return file.read(count)


def _is_webp(start: bytes) -> bool:
    return start[:4] == b"RIFF" and start[8:12] == b"WEBP"


def _webp_size(start: bytes, length: int) -> Size | None:
    """Return the size of a still WebP that is all there and not turned.

    Pillow would read all of it and make room for two pictures.
    """
    if not _is_webp(start) or int.from_bytes(start[4:8], "little") + 8 > length:
        return None
    kind = start[12:16]
    if kind == b"VP8X" and not start[20] & (_WEBP_ANIMATED | _WEBP_EXIF):
        width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        width, height = ((bits >> shift & 0x3FFF) + 1 for shift in (0, 14))
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(start[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    else:
        return None
    return Size(height, width)


def _announced(content: bytes, name: str) -> int | None:
    """Return how many pixels a header announces, None where it is not known; refuse too many."""
    if _is_webp(content):
        return None  # at most 2**28, by its format
    readers: list[type[ImageFile.ImageFile]]
    readers = [reader for start, reader in _HEADERS.items() if content.startswith(start)]
    if name.lower().endswith(".avif"):
        readers = [AvifImageFile]
    for reader in readers:
        with suppress(_UNREADABLE):
            image = reader(io.BytesIO(content))
            height, width = image.height, image.width
            pixels = _of_all_pages(image) if isinstance(image, TiffImageFile) else height * width
            break
    else:
        return None
    refuse_too_large(height, width, pixels=pixels)
    return pixels


def _of_all_pages(image: TiffImageFile) -> int:
    """Return the pixels of all pages of a TIFF, which Ultralytics decodes one and all."""
    total = 0
    with suppress(EOFError):
        for page in itertools.count():
            image.seek(page)
            total += max(image.width * image.height, _PAGE)
            if total > MOST_PIXELS:
                break
    return total


def _decoded(content: bytes, name: str) -> NDArray[np.uint8] | None:
    """Decode as `ultralytics.utils.patches.imread` does; a file that is cut short gives None."""
    import cv2

    name = name.lower()
    try:
        if name.endswith(".avif"):
            upright = ImageOps.exif_transpose(AvifImageFile(io.BytesIO(content)))
            return np.asarray(upright.convert("RGB"))[..., ::-1]
        if content.startswith(_JPEG):
            # OpenCV 4 makes the rest of a JPEG that is cut short grey and says nothing. An eighth
            # of the size takes as much of the file, and a 64th of the memory.
            jpeg = JpegImageFile(io.BytesIO(content))
            jpeg.draft(jpeg.mode, (1, 1))
            jpeg.load()
        stored = np.frombuffer(content, np.uint8)
        image = None
        if name.endswith((".tif", ".tiff")):
            # By IMREAD_COLOR, colours of 16 bits would be scaled and an alpha channel taken in.
            _, pages = cv2.imdecodemulti(stored, cv2.IMREAD_UNCHANGED, range=(0, 1))
            if pages and pages[0].ndim == 3:
                image = pages[0][..., :3]
        if image is None:
            image = cv2.imdecode(stored, cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "MAX_IMAGE_PIXELS" in str(error):  # the bound that `prepare_process` sets
            raise TooLargeError(f"more than {MOST_PIXELS} px") from error
        return None
    except _UNREADABLE:
        return None
    if image is not None and image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return image
