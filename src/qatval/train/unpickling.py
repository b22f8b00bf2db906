"""Unpickling that runs nothing: what a pickle says, as records.

A pickle is a program for a small machine. It names classes and functions, and says what to call
them with. Here that machine is one that calls nothing: each name stands for a `Named`, each call
for an `Inert` record of what was said. So numpy's scalars, paths, or classes of another version of
Ultralytics do no harm and need not exist; a name that no detector's checkpoint has a use for is
refused nevertheless, by name.

It is not Python's own unpickler, as that calls what stands for a name, sets what a file's index
says is its memory's size aside, and hashes keys of which every level doubles the work. torch's own
reader for untrusted files (``weights_only``) builds the classes it is allowed, so it needs them to
be importable and harmless, and it cannot read modules in the container that torch wrote before 1.6.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, BinaryIO

import torch

from qatval.core.errors import quoted

MAX_PICKLE_BYTES = 64 << 20
"""A YOLOv10m's pickle has 200 kB, without what a training recorded beside it."""
_MAX_OPERATIONS = 1_000_000  # a YOLOv10m has 80,000; each leaves up to 300 bytes
_MAX_NAME = 200  # characters
_MAX_REFERENCE = 8  # parts
_MAX_KEY = 16  # parts

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
_IS_ALLOWED = re.compile("|".join(map(translate, _ALLOWED)))

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
    """A name that no checkpoint has a use for, quoted."""


@dataclass(frozen=True, eq=False, slots=True)
class Named:
    """A class or function that a file names, e.g. ``"torch.nn.modules.conv.Conv2d"``."""

    name: str

    @property
    def kind(self) -> str:
        """Its name without the module."""
        return self.name.rpartition(".")[2]


@dataclass(eq=False, slots=True)
class Inert:
    """An object of a class, or the result of a function, that a file names: what it says of it.

    Attributes:
        of: The class or function.
        arguments: What it would have been called with.
        state: What the object would have been given as its state; what stands in a list or a
            mapping of that class nobody asks for.
    """

    of: Named
    arguments: tuple[Any, ...]
    state: Any = field(default_factory=dict)

    def fields(self) -> Mapping[str, Any]:
        """Return its attributes, none if the file has them in another form."""
        return self.state if isinstance(self.state, dict) else {}


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the elements of tensors lie; `offset` is in elements."""

    dtype: torch.dtype
    key: str
    offset: int = 0


# The only classes that are what a file says they are: they hold values and do nothing.
_PLAIN: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): {_key(key): value for key, value in pairs},
    "builtins.set": lambda values=(): {_key(value) for value in values},
    "builtins.frozenset": lambda values=(): frozenset(_key(value) for value in values),
    "torch.Size": lambda sides=(): tuple(sides),
}

# What an operation without an argument leaves.
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_VALUES = re.compile(
    r"(BIN|SHORT_BIN)?(STRING|UNICODE8?|BYTES8?|FLOAT|INT[12]?)|LONG[14]?|BYTEARRAY8"
)


def _pushing(make: Callable[[], Any]) -> Callable[[Unpickler, Any], None]:
    return lambda machine, _: machine._push(make())


def _key(value: Any) -> Any:
    """Return what may be a key: what takes no longer to hash than to read, and hashes apart."""
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > _MAX_KEY or not all(_is_plain_key(part) for part in parts):
        raise pickle.UnpicklingError(f"a key of type {type(value).__name__}")
    return value


def _is_plain_key(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**61) < value < 2**61
    return value is None or isinstance(value, str | bytes | float | Named | Inert)


class Unpickler:
    """Reads one pickle of a file, from where that stands.

    Attributes:
        storages: The storages that the pickle refers to, by key.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read from an open binary file."""
        self.storages: dict[str, Storage] = {}
        self._file = file
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._left = _MAX_OPERATIONS

    def load(self) -> Any:
        """Return what the pickle describes, of Python's own plain types and of records.

        Raises:
            RefusedError: If it names what no checkpoint has a use for.
            EOFError: If it breaks off.
            Exception: If it contradicts itself: of any kind that working on wrong types raises.
        """
        operations = self._operations
        try:
            for opcode, argument, _ in pickletools.genops(self._file):
                self._left -= 1
                if self._left < 0:
                    raise pickle.UnpicklingError("more operations than a checkpoint has")
                if opcode.name == "STOP":
                    return self._stack.pop()
                operations[opcode.name](self, argument)
        except ValueError as error:
            if not self._file.read(1):
                raise EOFError from error
            raise
        raise EOFError

    # -- the machine: an operation each, of a stack, of marks on it, and of a memo -------------

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _from_mark(self) -> list[Any]:
        found, self._stack = self._stack, self._below.pop()
        return found

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._from_mark()

    def _drop_mark(self, _: Any) -> None:
        self._from_mark()

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target += values
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError("values for what is no list")

    def _set(self, pairs: list[Any]) -> None:
        target, values = self._stack[-1], dict(self._pairs(pairs))
        if isinstance(target, dict):
            target |= values
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError("keys for what is no mapping")

    def _pairs(self, values: list[Any]) -> list[tuple[Any, Any]]:
        return [(_key(k), v) for k, v in zip(values[::2], values[1::2], strict=True)]

    def _add(self, _: Any) -> None:
        values = self._from_mark()
        target: set[Any] = self._stack[-1]
        target.update(_key(value) for value in values)

    def _tuple(self, length: int) -> None:
        if len(self._stack) < length:
            raise pickle.UnpicklingError("a tuple of more than there is")
        self._stack[-length:] = [tuple(self._stack[-length:])]

    def _name(self, module: str, name: str) -> None:
        # Names of Python 2, in which pickles of torch's protocol speak.
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if len(module) + len(name) > _MAX_NAME:
            raise RefusedError(quoted(name or module))
        full = f"{module}.{name}"
        if not (full.isascii() and full.isprintable()):
            raise RefusedError(quoted(full))
        if full not in _PLAIN and not _IS_ALLOWED.match(full):
            raise RefusedError(quoted(full))
        self._stack.append(Named(full))

    def _call(self, arguments: Any) -> None:
        """Put what a call is recorded as in the place of what is called."""
        called = self._stack.pop()
        if not isinstance(called, Named) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no name")
        if (plain := _PLAIN.get(called.name)) is None:
            self._stack.append(Inert(called, arguments))
            return
        self._left -= sum(map(len, arguments))  # of what may stand in the file once
        if self._left < 0:
            raise pickle.UnpicklingError("more copies than a checkpoint has")
        self._stack.append(plain(*arguments))

    def _call_with_names(self, _: Any) -> None:
        self._stack.pop()  # nobody asks for arguments that were given by name
        self._call(self._stack.pop())

    def _call_from_mark(self, _: Any) -> None:
        called, *arguments = self._from_mark()
        self._stack.append(called)
        self._call(tuple(arguments))

    def _instance(self, named: str) -> None:
        arguments = self._from_mark()
        self._name(*named.split(" ", 1))
        self._call(tuple(arguments))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # of which nobody asks for more than its content
            raise pickle.UnpicklingError("a state for what has none")

    def _refer(self, saved: Any) -> None:
        """Put what stands for a reference out of the pickle: a storage, or a class."""
        if not isinstance(saved, tuple) or len(saved) > _MAX_REFERENCE:
            raise pickle.UnpicklingError("an unknown reference")
        kind, what, *more = saved
        if not isinstance(what, Named):
            raise pickle.UnpicklingError("a reference to what is no class")
        if kind == "module":  # the old container keeps a class's source beside it
            self._stack.append(what)
            return
        key, view = more[0], more[3] if len(more) > 3 else None
        if kind != "storage" or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown reference")
        dtype = _DTYPES.get(what.kind, torch.uint8)  # of a kind that `_tensor` refuses
        self.storages.setdefault(key, Storage(dtype, key))
        self._stack.append(Storage(dtype, key, view[1] if view else 0))

    _operations: Mapping[str, Callable[[Unpickler, Any], None]] = {
        **dict.fromkeys(filter(_VALUES.fullmatch, (o.name for o in pickletools.opcodes)), _push),
        **{name: _pushing(make) for name, make in _CONSTANTS.items()},
        "TUPLE1": lambda self, _: self._tuple(1),
        "TUPLE2": lambda self, _: self._tuple(2),
        "TUPLE3": lambda self, _: self._tuple(3),
        **dict.fromkeys(("PROTO", "FRAME"), lambda self, _: None),
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
        "MEMOIZE": lambda self, _: self._put(len(self._memo)),
        **dict.fromkeys(
            ("GET", "BINGET", "LONG_BINGET"), lambda self, index: self._push(self._memo[index])
        ),
        "MARK": _mark,
        "POP": _pop,
        "POP_MARK": _drop_mark,
        "DUP": lambda self, _: self._push(self._stack[-1]),
        "TUPLE": lambda self, _: self._push(tuple(self._from_mark())),
        "LIST": lambda self, _: self._push(self._from_mark()),
        "DICT": lambda self, _: self._push(dict(self._pairs(self._from_mark()))),
        "FROZENSET": lambda self, _: self._push(frozenset(map(_key, self._from_mark()))),
        "APPEND": lambda self, _: self._append([self._stack.pop()]),
        "APPENDS": lambda self, _: self._append(self._from_mark()),
        "SETITEM": lambda self, _: self._set([self._stack.pop(-2), self._stack.pop()]),
        "SETITEMS": lambda self, _: self._set(self._from_mark()),
        "ADDITEMS": _add,
        "GLOBAL": lambda self, named: self._name(*named.split(" ", 1)),
        "STACK_GLOBAL": lambda self, _: self._name(self._stack.pop(-2), self._stack.pop()),
        "INST": _instance,
        "OBJ": _call_from_mark,
        "NEWOBJ": lambda self, _: self._call(self._stack.pop()),
        "NEWOBJ_EX": _call_with_names,
        "REDUCE": lambda self, _: self._call(self._stack.pop()),
        "BUILD": _build,
        "PERSID": _refer,
        "BINPERSID": lambda self, _: self._refer(self._stack.pop()),
    }
