"""An exported file before any runtime sees it: whether it is whole, and its card.

An ONNX file is one message of Protocol Buffers, of which the outermost fields are enough here. They
are read without a library: no runtime tells the same of a foreign file, OpenVINO tells nothing of a
file's metadata, and what is no file of qatval's reaches no parser in C++.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from qatval.core.bounded_json import UnfitJsonError, decode_bounded
from qatval.core.errors import QatvalError
from qatval.core.files import read_regular
from qatval.deploy.card import KEY, Card

MOST_BYTES = 2**31 - 1  # of a message of Protocol Buffers
MOST_CARD_BYTES = 2**20  # a thousand classes take 20 kB
LARGEST_SIDE = 8192  # px; one float32 image of it takes 768 MiB

# Field numbers of onnx.proto's ModelProto and of its map entries.
_GRAPH, _METADATA = 7, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

_EXPECTED = "an ONNX file that 'qatval export' wrote"


class _NoMessageError(ValueError):
    """Bytes that are no message, or not all of one."""


def read_card(file: Path) -> Card:
    """Read what an exported file says of itself.

    Raises:
        QatvalError: It cannot be read, is no ONNX file, is cut short, or has no card, or one of
            another form or beyond what can be run.
    """
    content = memoryview(read_regular(file, MOST_BYTES, expected=_EXPECTED))
    try:
        fields = list(_fields(content))
        entries = [dict(_fields(value)) for number, value in fields if number == _METADATA]
    except _NoMessageError as error:
        raise QatvalError(
            f"{file}: is no whole ONNX file ({error}): copy it again, or give {_EXPECTED}"
        ) from error
    if not any(number == _GRAPH for number, _ in fields):
        raise QatvalError(f"{file}: is no ONNX file (it holds no graph); expected {_EXPECTED}")
    named = {bytes(e.get(_ENTRY_KEY, b"")): e.get(_ENTRY_VALUE) for e in entries}
    card = named.get(KEY.encode())
    if card is None:
        raise QatvalError(
            f"{file}: does not say how it is to be fed (it has no '{KEY}' among its metadata); "
            f"expected {_EXPECTED}"
        )
    return _decoded(file, card)


def _decoded(file: Path, content: memoryview) -> Card:
    if len(content) > MOST_CARD_BYTES:
        raise QatvalError(
            f"{file}: its card has {len(content):,} bytes, at most {MOST_CARD_BYTES:,} are read; "
            f"expected {_EXPECTED}"
        )
    try:
        card = msgspec.convert(decode_bounded(bytes(content)), Card)
    except (UnfitJsonError, msgspec.ValidationError) as error:
        raise QatvalError(
            f"{file}: its card cannot be used ({error}); export the run again with this qatval"
        ) from error
    if card.input.imgsz > LARGEST_SIDE:
        raise QatvalError(
            f"{file}: takes images of {card.input.imgsz} px, at most {LARGEST_SIDE} are run; "
            "export it for a smaller --imgsz"
        )
    return card


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of a message's fields, empty for those that are numbers."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, length = key & 7, 0
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise _NoMessageError(f"no field can begin at byte {at}")
        if at + length > len(message):
            raise _NoMessageError(f"{at + length - len(message):,} bytes are missing at its end")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    number = 0
    for place in range(10):
        if at + place >= len(message):
            raise _NoMessageError("it ends within a number")
        byte = message[at + place]
        number |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            return number, at + place + 1
    raise _NoMessageError(f"no number can be at byte {at}")
