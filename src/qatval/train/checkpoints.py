"""Reading what torch saved, without running anything in it.

A ``.pt`` file is a pickle beside the storages of its tensors. `qatval.train.unpickling` makes
records of the pickle; here the weights are found among them and made into tensors.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from qatval.core.errors import QatvalError
from qatval.train.unpickling import Inert, RefusedError, Unpickler

_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # of the container before torch 1.6
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.|model\.)*(?=\d+\.)")
_WEIGHTS = ("ema", "model", "ema_state_dict", "model_state_dict", "state_dict", "module")
_SETTINGS = ("eps", "kernel_size", "stride", "padding", "dilation", "groups")

_AGAIN = "copy or download it again"
_GIVE = "give the .pt or .safetensors checkpoint"


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
    try:
        with path.open("rb") as file:
            saved, read = _open(path, file)
            return _saved_model(path, saved, read)
    except OSError as error:
        raise QatvalError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except RefusedError as error:
        raise QatvalError(
            f"{path} is refused: it refers to '{error}', which is not part of a YOLO checkpoint, "
            "and loading it could run code; use an official checkpoint, or save the state dict of "
            "the model alone"
        ) from error
    except zipfile.BadZipFile as error:
        raise QatvalError(
            f"{path} is damaged: expected a whole zip archive ({error}); {_AGAIN}"
        ) from error
    except _MALFORMED as error:
        raise QatvalError(
            f"{path} is damaged: expected a pickle as torch.save writes it, got one that breaks "
            f"off or contradicts itself ({type(error).__name__}); {_AGAIN}"
        ) from error


# What a pickle that something else wrote, or that was altered, can raise in an unpickler or here.
_MALFORMED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError),
    *(RuntimeError, OverflowError, struct.error),
)


def _open(path: Path, file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    """Return the object in a file, and what reads a storage of it by its key."""
    head = file.read(512)
    file.seek(0)
    if head[:4] == b"PK\3\4":
        if not zipfile.is_zipfile(file):
            raise QatvalError(
                f"{path} is truncated: it begins as a checkpoint and its end is missing; {_AGAIN}"
            )
        return _open_zip(path, zipfile.ZipFile(file))
    if head[:1] == b"\x80":
        return _open_old(path, file)
    raise QatvalError(f"{path} is not a loadable checkpoint: {_kind_of(head)}")


def _open_zip(path: Path, archive: zipfile.ZipFile) -> tuple[Any, Callable[[str], bytes]]:
    names = archive.namelist()
    roots = [n.removesuffix("data.pkl") for n in names if re.fullmatch(r"(?:[^/]*/)?data\.pkl", n)]
    exports = {"constants.pkl": "a TorchScript archive", "archive_format": "of torch.export"}
    for name in names:
        if (kind := exports.get(name.rpartition("/")[2])) and name.count("/") < 2:
            raise QatvalError(
                f"{path} is an export ({kind}), which cannot be fine-tuned; {_GIVE} that it was "
                "exported from"
            )
    if not roots:
        inside = f"it holds '{names[0]}'" if names else "it is empty"
        raise QatvalError(
            f"{path} is not a loadable checkpoint: a zip archive that torch.save did not write "
            f"({inside}); {_GIVE}"
        )
    root = roots[0]
    try:
        archive.read(f"{root}version")
    except zipfile.BadZipFile as error:
        raise QatvalError(
            f"{path} was saved with torch's checksums switched off, so that nobody can tell "
            "whether it is whole; save it again after torch.serialization.set_crc32_options(True)"
        ) from error
    order = f"{root}byteorder"
    _refuse_byteorder(path, archive.read(order).decode() if order in names else "little")
    saved = Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
    return saved, lambda key: archive.read(f"{root}data/{key}")


def _open_old(path: Path, file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    try:
        magic = Unpickler(file).load()
        if magic != _OLD_MAGIC:
            raise QatvalError(
                f"{path} is not a loadable checkpoint: a pickle that torch.save did not write; "
                "save the model with torch.save"
            )
        _, system = Unpickler(file).load(), Unpickler(file).load()
        _refuse_byteorder(path, "little" if system["little_endian"] else "big")
        unpickler = Unpickler(file)
        saved = unpickler.load()
        blocks = {}
        for key in Unpickler(file).load():
            (count,) = struct.unpack("<q", file.read(8))
            blocks[key] = file.tell(), count * unpickler.storages[key].dtype.itemsize
            if file.seek(sum(blocks[key])) > path.stat().st_size:
                raise EOFError
    except (EOFError, struct.error) as error:
        raise _truncated(path) from error
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise _truncated(path) from error
        raise

    def read(key: str) -> bytes:
        start, length = blocks[key]
        file.seek(start)
        return file.read(length)

    return saved, read


def _truncated(path: Path) -> QatvalError:
    return QatvalError(
        f"{path} is truncated: it ends before its pickle or its tensors do; {_AGAIN}"
    )


def _refuse_byteorder(path: Path, order: str) -> None:
    if order != sys.byteorder:
        raise QatvalError(
            f"{path} was saved on a machine with {order}-endian numbers, this one is "
            f"{sys.byteorder}-endian; save it again on a machine like this"
        )


def _kind_of(head: bytes) -> str:
    """Say what a file is that torch did not save, and what to do."""
    start = head.lstrip()[:64].lower()
    export = "an export ({}), which cannot be fine-tuned; " + _GIVE + " that it was exported from"
    if not head:
        return f"it is empty; {_AGAIN}"
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):
        return export.format("ONNX")
    if b"ftrt" in head[:8] or b"ptrt" in head[:8] or head[4:5] == b"{":
        return export.format("a TensorRT engine")
    if head[4:8] == b"TFL3":
        return export.format("TensorFlow Lite")
    if head[8:9] == b"{":
        return "a safetensors file; let its name end in .safetensors"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in the file's place; fetch the file with 'git lfs pull'"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page that was saved in its place; download the file itself"
    if head[257:262] == b"ustar":
        return f"a tar archive; unpack it, and {_GIVE} in it"
    if head[:2] == b"\x1f\x8b":
        return f"a gzip archive; unpack it, and {_GIVE} in it"
    return f"another kind of file (it begins with {head[:8]!r}); expected one that torch.save wrote"


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
    layers = {}
    if isinstance(model, Inert):
        records: dict[str, Any] = {}
        for name, kind, fields in _walk(model, ""):
            prefix = f"{name}." if name else ""
            kept_out = fields.get("_non_persistent_buffers_set") or ()
            held = {**fields["_parameters"], **fields["_buffers"]}
            records |= {
                f"{prefix}{n}": t for n, t in held.items() if t is not None and n not in kept_out
            }
            if not fields["_modules"]:
                layers[name] = Layer(kind, {k: fields[k] for k in _SETTINGS if k in fields})
    else:
        records = {str(name): record for name, record in model.items() if record is not None}
    cut = _wrapping(list(records))
    storages: dict[str, Tensor] = {}
    tensors = {}
    for name, record in records.items():
        tensor = _tensor(path, name, record, read, storages)
        tensors[_unwrapped(name, cut)] = tensor.float() if tensor.is_floating_point() else tensor
    return SavedModel(
        tensors, _find_names(model, saved), {_unwrapped(n, cut): v for n, v in layers.items()}
    )


def _find_weights(saved: Any) -> Inert | Mapping[Any, Any] | None:
    """Return the module or the state dict in what a file holds."""
    if isinstance(saved, Inert):
        return saved if "_modules" in saved.fields() else _find_weights(saved.fields())
    if not isinstance(saved, Mapping):
        return None
    if any(isinstance(name, str) and _WRAPPERS.match(name) for name in saved):
        return saved
    candidates = (_find_weights(saved[key]) for key in _WEIGHTS if saved.get(key) is not None)
    return next((found for found in candidates if found is not None), None)


def _walk(module: Any, name: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield name, class and attributes of a module and of all in it, as a file has them."""
    fields = module.fields()
    yield name, type(module).__name__, fields
    for part, child in fields["_modules"].items():
        if child is not None:
            yield from _walk(child, f"{name}.{part}" if name else part)


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
        while isinstance(place, Inert | Mapping):
            fields = place.fields() if isinstance(place, Inert) else place
            names = fields.get("names")
            if isinstance(names, Mapping) and set(names) == set(range(len(names))):
                names = [names[index] for index in range(len(names))]
            if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
                return tuple(names) or None
            inner = fields.get("_modules") or {}
            place = next((inner[k] for k in ("module", "model", "_orig_mod") if k in inner), None)
    return None


def _tensor(
    path: Path,
    name: str,
    record: Any,
    read: Callable[[str], bytes],
    storages: dict[str, Tensor],
) -> Tensor:
    """Make a tensor of what a file says about it; each storage is read once."""
    said = record.name if isinstance(record, Inert) else type(record).__name__
    if said in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return _tensor(path, name, record.arguments[0], read, storages)
    if said not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        raise QatvalError(
            f"{path}: '{name}' is no plain tensor but of '{said}'; expected an FP32 checkpoint"
        )
    storage, offset, size, stride = record.arguments[:4]
    if storage.key not in storages:
        content = bytearray(read(storage.key))
        storages[storage.key] = (
            torch.frombuffer(content, dtype=storage.dtype)
            if content
            else torch.empty(0, dtype=storage.dtype)
        )
    elements = storages[storage.key]
    if math.prod(size) > elements.numel():
        raise ValueError(f"{name} is larger than its storage")
    return elements.as_strided(tuple(size), tuple(stride), storage.offset + offset)
