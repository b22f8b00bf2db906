"""Images for tests: of noise, in any format, and files that announce more than they hold."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 40


def encoded(
    format: str, mode: str = "RGB", orientation: int | None = None, **options: Any
) -> bytes:
    """Return an image of noise in a file format."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif.tobytes()
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_of(height: int, width: int) -> bytes:
    """Return a PNG of any size in its header, and no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", b""), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of(height: int, width: int) -> bytes:
    """Return a JPEG of any size in its header, and the pixels of a small one."""
    content = bytearray(encoded("JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp_of(height: int, width: int) -> bytes:
    """Return a BMP of any size in its header, and no pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def tiff_of(height: int, width: int, pages: int = 1) -> bytes:
    """Return a TIFF of white pages, which take next to no room."""
    stream = io.BytesIO()
    page = Image.new("1", (width, height), 1)
    page.save(
        stream, "TIFF", compression="group4", save_all=True, append_images=[page] * (pages - 1)
    )
    return stream.getvalue()
