"""JSON that somebody else wrote, decoded within bounds or refused in one line.

Python's and msgspec's decoders take whatever depth and number a file has. What comes after them,
sums, squares, drawings and other encoders, does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

# No run records such a number, and the square of one is still a float.
_LARGEST = 1e50
_DEEPEST = 64
_BOM = b"\xef\xbb\xbf"


class UnfitJsonError(ValueError):
    """Why a content cannot be used, as what follows the name of its file."""


def decode_bounded(content: bytes) -> Any:
    """Decode UTF-8 JSON, a BOM at its beginning or not.

    Raises:
        UnfitJsonError: It is not JSON, nested more than 64 deep, or holds a number above 1e50.
    """
    try:
        document = msgspec.json.decode(content.removeprefix(_BOM))
    except RecursionError as error:
        raise UnfitJsonError("is too deeply nested") from error
    except UnicodeDecodeError as error:  # msgspec lets it through
        raise UnfitJsonError(f"is not valid JSON (byte {error.start} is not UTF-8)") from error
    except msgspec.ValidationError as error:
        raise UnfitJsonError(f"holds what no number can be: {error}") from error
    except msgspec.DecodeError as error:
        raise UnfitJsonError(f"is not valid JSON ({error}): truncated?") from error
    _refuse_boundless([document], _DEEPEST)
    return document


def _refuse_boundless(values: Iterable[Any], levels: int) -> None:
    """Look at decoded values; ``levels`` of lists and objects may lie below them."""
    for value in values:
        kind = type(value)
        if kind is float or kind is int:
            if not -_LARGEST <= value <= _LARGEST:
                raise UnfitJsonError(f"holds a number above {_LARGEST:g}")
        elif kind is dict or kind is list:
            if not levels:
                raise UnfitJsonError(f"is nested more than {_DEEPEST} deep")
            _refuse_boundless(value.values() if kind is dict else value, levels - 1)
