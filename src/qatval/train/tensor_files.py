"""Reading safetensors files within bounds: names, numbers, and text beside them.

The format runs nothing and its library checks that tensors neither overlap nor leave the file.
What is left to bound is how much of it there is, before the library makes objects of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from qatval.core.errors import QatvalError, quoted

MAX_BYTES = 1 << 30
"""Of a checkpoint: three times that of a YOLOv10m with its optimizer's state."""
_MAX_HEADER_BYTES = 8 << 20
"""Of what says where tensors lie: 20 times that of a quantized YOLOv10m for 20,000 classes."""


def require_file(path: Path) -> None:
    """Refuse what is no file, which could be read for ever, or is larger than any checkpoint.

    Raises:
        QatvalError: It says which.
    """
    try:
        if not path.exists():
            raise QatvalError(f"cannot read checkpoint {path}: there is no such file")
        if not path.is_file():
            raise QatvalError(f"cannot read checkpoint {path}: expected a file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise QatvalError(
                f"{path} is no detector's checkpoint: expected up to {MAX_BYTES >> 20} MiB, got "
                f"{size >> 20}; give another file"
            )
    except OSError as error:
        raise QatvalError(f"cannot read checkpoint {path}: {error.strerror or error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts beside the tensors of a file.

    Raises:
        QatvalError: If the file is missing, too large or damaged.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises:
        QatvalError: If the file is missing, too large or damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if len(head) == 8 and (length := struct.unpack("<Q", head)[0]) > _MAX_HEADER_BYTES:
            raise QatvalError(
                f"{path} is damaged: expected a safetensors header of up to "
                f"{_MAX_HEADER_BYTES >> 20} MiB, got one of {length} bytes; copy it again"
            )
        with safetensors.safe_open(path, "pt") as opened:
            yield opened
    except OSError as error:
        raise QatvalError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    # Some kinds of numbers torch does not have, and of these the library says nothing better.
    except (safetensors.SafetensorError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise QatvalError(
            f"{path} is damaged: expected a whole safetensors file ({quoted(str(error))}); copy it "
            "again"
        ) from error
