"""Unpickling that runs nothing: what a pickle says, as records.

A pickle names classes and functions, and says what to call them with. Nothing that it names is
called or even imported here: each name stands for an `Inert` record of what was said about it. So
numpy's scalars, paths, or classes of another version of Ultralytics do no harm and need not exist;
a name that no detector's checkpoint has a use for is refused nevertheless, by name.

torch's own reader for untrusted files (``weights_only``) builds the classes it is allowed, so it
needs them to be importable and harmless, and it cannot read modules in the container that torch
wrote before 1.6.
"""

from __future__ import annotations

import functools
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch

_ALLOWED = (
    *("torch.*Storage", "torch.nn.*", "torch._utils._rebuild_*", "torch._tensor._rebuild_*"),
    *("torch.Tensor", "torch.device", "torch.float*", "torch.bfloat16", "torch.int*", "torch.bool"),
    *("torch.per_*", "torch.complex*", "torch.serialization._get_layout"),
    *("ultralytics.*", "torchvision.transforms.*", "pathlib.*Path", "collections.*", "datetime.*"),
    *("numpy.dtype*", "numpy.ndarray", "numpy.*.scalar", "numpy.*._reconstruct", "numpy.*[0-9]"),
    *("argparse.Namespace", "types.SimpleNamespace", "copyreg._reconstructor", "_codecs.encode"),
    *("builtins.object", "builtins.getattr", "builtins.slice", "builtins.range", "builtins.list"),
    *(
        "builtins.dict",
        "builtins.tuple",
        "builtins.bytes",
        "builtins.bytearray",
        "builtins.complex",
    ),
    *("builtins.int", "builtins.float", "builtins.bool", "builtins.str"),
)
"""Patterns of the names that a checkpoint may refer to. None of them is called."""

# The only classes that are what a file says they are: they hold values and do nothing.
_PLAIN = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "torch.Size": tuple,
}

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class RefusedError(Exception):
    """A name that no checkpoint has a use for."""


class Inert:
    """An object of a class, or the result of a function, that a file names: what it says of it."""

    name: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        """Keep what the class or function would have been called with."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Do nothing."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # Of subclasses of list, dict and set, whose content nobody asks for.
    def append(self, value: Any) -> None:
        """Do nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Do nothing."""

    def fields(self) -> Mapping[str, Any]:
        """Return its attributes, none if the file has them in another form."""
        return self.state if isinstance(self.state, dict) else {}


@functools.cache
def _inert(name: str) -> type[Inert]:
    return type(name.rpartition(".")[2], (Inert,), {"name": name})


@dataclass(frozen=True)
class Storage:
    """Where the elements of tensors lie; `offset` is in elements."""

    dtype: torch.dtype
    key: str
    offset: int = 0


class Unpickler(pickle.Unpickler):
    """Reads one pickle of a file, from where that stands.

    Attributes:
        storages: The storages that the pickle refers to, by key.
    """

    def __init__(self, file: Any) -> None:
        """Read from an open binary file."""
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; RefusedError if no checkpoint has a use for it."""
        # Names of Python 2, in which pickles of torch's protocol speak.
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in _PLAIN:
            return _PLAIN[full]
        if any(fnmatchcase(full, pattern) for pattern in _ALLOWED):
            return _inert(full)
        raise RefusedError(full)

    def persistent_load(self, saved: Any) -> Any:
        """Return what stands for a reference out of the pickle: a storage, or a class."""
        kind, what, *more = saved
        if kind == "module":  # the old container keeps a class's source beside it
            return what
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown reference {kind}")
        key, view = str(more[0]), more[3] if len(more) > 3 else None
        dtype = _DTYPES.get(what.__name__, torch.uint8)  # of a kind that `_tensor` refuses
        self.storages.setdefault(key, Storage(dtype, key))
        return Storage(dtype, key, view[1] if view else 0)
