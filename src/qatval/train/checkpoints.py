"""Reading what torch saved, without running anything in it.

A ``.pt`` file is a pickle beside the storages of its tensors. `qatval.train.containers` finds them,
`qatval.train.unpickling` makes records of the pickle; here the weights are found among these and
made into tensors. What is decoded is bounded by the file's size, whatever it says of itself.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qatval.core.errors import QatvalError, quoted
from qatval.core.presets import MAX_CLASS_NAME
from qatval.train.containers import AGAIN, open_container
from qatval.train.tensor_files import require_file
from qatval.train.unpickling import Inert, RefusedError, Storage

_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.|model\.)*(?=\d+\.)")
_WEIGHTS = ("ema", "model", "ema_state_dict", "model_state_dict", "state_dict", "module")
_SETTINGS = ("eps", "kernel_size", "stride", "padding", "dilation", "groups")

_MAX_PARTS = 100_000  # modules, parameters and buffers; a YOLOv10m has 4,000
_MAX_DEPTH = 64  # of modules in modules; a YOLOv10m has 9
_MAX_NAME = 300  # characters of a tensor's
_MAX_SIDES = 8  # of a tensor
_MAX_MEASURE = 2**40  # of its sides and strides


@dataclass(frozen=True)
class Layer:
    """What a file says about a layer without layers in it: its class, settings of convolutions."""

    kind: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SavedModel:
    """The weights in a file.

    Attributes:
        tensors: By name as Ultralytics' models have it (``model.0.conv.weight``), float32 where
            the file has any floats.
        class_names: By class index, None where the file has none.
        layers: By name; empty where the file holds tensors alone.
    """

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None
    layers: Mapping[str, Layer] = field(default_factory=dict)


def read_torch_file(path: Path) -> SavedModel:
    """Read the weights of a file that ``torch.save`` wrote, in its present or its old container.

    They may be those of an Ultralytics checkpoint (``ema`` before ``model``, as Ultralytics takes
    them), of a bare model or of a state dict, wrapped (``module.``) or not.

    Raises:
        QatvalError: If the file is truncated, damaged, of another kind, names what a checkpoint
            has no use for, or holds no weights of a detector. The message says which.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            saved, read = open_container(path, file)
            return _saved_model(path, saved, read)
    except OSError as error:
        raise QatvalError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except RefusedError as error:
        raise QatvalError(
            f"{path} is refused: it refers to {error}, which is not part of a YOLO checkpoint, "
            "and loading it could run code; use an official checkpoint, or save the state dict of "
            "the model alone"
        ) from error
    except zipfile.BadZipFile as error:
        raise QatvalError(
            f"{path} is damaged: expected a whole zip archive ({error}); {AGAIN}"
        ) from error
    except _MALFORMED as error:
        raise QatvalError(
            f"{path} is damaged: expected a pickle as torch.save writes it, got one that breaks "
            f"off or contradicts itself ({type(error).__name__}); {AGAIN}"
        ) from error


# What a pickle that something else wrote, or that was altered, can raise in an unpickler or here.
_MALFORMED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError),
    *(RuntimeError, OverflowError, MemoryError, struct.error),
)


def _saved_model(path: Path, saved: Any, read: Callable[[str], bytes]) -> SavedModel:
    if isinstance(saved, Mapping) and saved.get("modelopt"):
        raise QatvalError(
            f"{path} holds a model that was quantized with modelopt: expected an FP32 checkpoint "
            "to fine-tune"
        )
    model = _find_weights(saved)
    if model is None:
        raise QatvalError(
            f"{path} is not an Ultralytics checkpoint: expected a model under 'ema' or 'model', a "
            "model alone or its state dict"
        )
    records, layers = _content(model)
    cut = _wrapping(list(records))
    storages: dict[str, Tensor] = {}
    tensors = {}
    left = path.stat().st_size  # one byte an element is the least that any tensor takes
    for name, record in records.items():
        tensor = _tensor(path, name, record, read, storages)
        left -= tensor.numel()
        if left < 0:
            raise ValueError("tensors that overlap")
        tensors[_unwrapped(name, cut)] = tensor.float() if tensor.is_floating_point() else tensor
    return SavedModel(
        tensors, _find_names(model, saved), {_unwrapped(n, cut): v for n, v in layers.items()}
    )


def _content(model: Inert | Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Layer]]:
    """Return what stands for tensors in a module or a state dict, and the layers, by name."""
    if isinstance(model, Mapping):
        return {_name(key): record for key, record in model.items() if record is not None}, {}
    records: dict[str, Any] = {}
    layers = {}
    left = _MAX_PARTS
    for name, module in _walk(model, "", _MAX_DEPTH):
        fields = module.fields()
        held = {**fields["_parameters"], **fields["_buffers"]}
        left -= 1 + len(held) + len(fields["_modules"])
        if left < 0:
            raise ValueError("modules that contain themselves")
        kept_out = fields.get("_non_persistent_buffers_set") or set()
        if not isinstance(kept_out, set):
            raise TypeError("names of buffers")
        prefix = f"{name}." if name else ""
        records |= {
            _name(prefix, n): t for n, t in held.items() if t is not None and n not in kept_out
        }
        if not fields["_modules"]:
            settings = {k: _setting(fields[k]) for k in _SETTINGS if k in fields}
            layers[name] = Layer(module.of.kind, settings)
    return records, layers


def _find_weights(saved: Any, seen: set[int] | None = None) -> Inert | Mapping[Any, Any] | None:
    """Return the module or the state dict in what a file holds."""
    seen = set() if seen is None else seen
    if id(saved) in seen:
        return None
    seen.add(id(saved))
    if isinstance(saved, Inert):
        return saved if "_modules" in saved.fields() else _find_weights(saved.fields(), seen)
    if not isinstance(saved, Mapping):
        return None
    if any(isinstance(name, str) and _WRAPPERS.match(name) for name in saved):
        return saved
    candidates = (_find_weights(saved[key], seen) for key in _WEIGHTS if saved.get(key) is not None)
    return next((found for found in candidates if found is not None), None)


def _walk(module: Inert, name: str, depth: int) -> Iterator[tuple[str, Inert]]:
    """Yield a module and all in it, each with its name."""
    if not depth:
        raise ValueError("modules that contain themselves")
    yield name, module
    for part, child in module.fields()["_modules"].items():
        if child is not None:
            yield from _walk(child, _name(f"{name}." if name else "", part), depth - 1)


def _name(*parts: Any) -> str:
    """Return a name that a file has for a tensor or a module, joined."""
    if sum(map(len, parts)) > _MAX_NAME:
        raise ValueError("a name that is too long")
    return "".join(parts)


def _setting(value: Any) -> Any:
    """Return a layer's setting: a number, a word, or some of them."""
    flat = value if isinstance(value, tuple) else (value,)
    if len(flat) > _MAX_SIDES or not all(
        isinstance(v, float)
        or (isinstance(v, int) and abs(v) < _MAX_MEASURE)
        or (isinstance(v, str) and len(v) < _MAX_NAME)
        for v in flat
    ):
        raise ValueError("a setting of a layer")
    return value


def _wrapping(names: Sequence[str]) -> str | None:
    """Return what stands before the layer's number in all names, None if they are no detector's."""
    found = {match.group() if (match := _WRAPPERS.match(name)) else None for name in names}
    return found.pop() if len(found) == 1 else None


def _unwrapped(name: str, cut: str | None) -> str:
    return name if cut is None else f"model.{name.removeprefix(cut)}"


def _find_names(model: Any, saved: Any) -> tuple[str, ...] | None:
    """Return the class names beside the weights, or elsewhere in the file."""
    places = [model, saved]
    if isinstance(saved, Mapping):
        places += [saved.get(key) for key in _WEIGHTS]
    for place in places:
        for _ in range(_MAX_DEPTH):
            if not isinstance(place, Inert | Mapping):
                break
            fields = place.fields() if isinstance(place, Inert) else place
            names = fields.get("names")
            if isinstance(names, Mapping) and set(names) == set(range(len(names))):
                names = [names[index] for index in range(len(names))]
            if isinstance(names, list | tuple) and all(map(_is_class_name, names)):
                return tuple(names) or None
            inner = fields.get("_modules") or {}
            place = next((inner[k] for k in ("module", "model", "_orig_mod") if k in inner), None)
    return None


def _is_class_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= MAX_CLASS_NAME


def _tensor(
    path: Path,
    name: str,
    record: Any,
    read: Callable[[str], bytes],
    storages: dict[str, Tensor],
) -> Tensor:
    """Make a tensor of what a file says about it; each storage is read once."""
    said = record.of.name if isinstance(record, Inert) else type(record).__name__
    if said in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return _tensor(path, name, record.arguments[0], read, storages)
    if said not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        raise QatvalError(
            f"{path}: {quoted(name)} is no plain tensor but of '{said}'; expected an FP32 "
            "checkpoint"
        )
    storage, offset, size, stride = record.arguments[:4]
    if not isinstance(storage, Storage) or len(size) > _MAX_SIDES or len(stride) != len(size):
        raise TypeError("a tensor of what is no storage")
    measures = (storage.offset, offset, *size, *stride)
    if not all(isinstance(v, int) and 0 <= v < _MAX_MEASURE for v in measures):
        raise ValueError("a tensor's measures")
    if storage.key not in storages:
        content = bytearray(read(storage.key))
        storages[storage.key] = (
            torch.frombuffer(content, dtype=storage.dtype)
            if content
            else torch.empty(0, dtype=storage.dtype)
        )
    elements = storages[storage.key]
    if math.prod(size) > elements.numel():
        raise ValueError("a tensor larger than its storage")
    return elements.as_strided(tuple(size), tuple(stride), storage.offset + offset)
