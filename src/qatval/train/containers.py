"""The two containers that torch saves in: a pickle, and the bytes of the tensors it refers to."""

from __future__ import annotations

import io
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from qatval.core.errors import QatvalError, quoted
from qatval.train.unpickling import MAX_PICKLE_BYTES, Unpickler

_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # of the container before torch 1.6
_MAX_RECORDS = 65_535  # in a zip archive; a YOLOv10m has 809

AGAIN = "copy or download it again"
_GIVE = "give the .pt or .safetensors checkpoint"


def open_container(path: Path, file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    """Return the object in a file that torch saved, and what reads a storage of it by its key.

    Raises:
        QatvalError: If it is truncated, of another kind, or says that it holds more than it can.
        Exception: If it is damaged, of any kind that zip archives and pickles raise.
    """
    head = file.read(512)
    file.seek(0)
    if head[:4] == b"PK\3\4":
        if not zipfile.is_zipfile(file):
            raise QatvalError(
                f"{path} is truncated: it begins as a checkpoint and its end is missing; {AGAIN}"
            )
        _refuse_many_records(path, file)
        return _open_zip(path, zipfile.ZipFile(file))
    if head[:1] == b"\x80":
        return _open_old(path, file)
    raise QatvalError(f"{path} is not a loadable checkpoint: {_kind_of(head)}")


def _refuse_many_records(path: Path, file: BinaryIO) -> None:
    """Refuse an archive with more records than a checkpoint has, before objects are made of them.

    Every record has an entry that begins with these bytes, and weights hardly ever hold them.
    """
    file.seek(0)
    blocks = iter(lambda: file.read(1 << 20), b"")
    if sum(block.count(b"PK\1\2") for block in blocks) > _MAX_RECORDS:
        raise QatvalError(
            f"{path} is not a loadable checkpoint: a zip archive of more than {_MAX_RECORDS} "
            f"records; {_GIVE}"
        )


def _refuse_expanding(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse records that are read as more than the file has: compressed, or one in another."""
    sizes = [record.file_size for record in archive.infolist()]
    if sum(sizes) > path.stat().st_size or any(
        record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()
    ):
        raise QatvalError(
            f"{path} is not a loadable checkpoint: torch.save wrote no zip archive whose records "
            f"are compressed or overlap; {_GIVE} as it was saved"
        )


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
        inside = f"it holds {quoted(names[0])}" if names else "it is empty"
        raise QatvalError(
            f"{path} is not a loadable checkpoint: a zip archive that torch.save did not write "
            f"({inside}); {_GIVE}"
        )
    _refuse_expanding(path, archive)
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
    if archive.getinfo(f"{root}data.pkl").file_size > MAX_PICKLE_BYTES:
        raise QatvalError(
            f"{path} is not a loadable checkpoint: its pickle is larger than "
            f"{MAX_PICKLE_BYTES >> 20} MiB; save the model or its state dict alone"
        )
    saved = Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
    return saved, lambda key: archive.read(f"{root}data/{key}")


def _open_old(path: Path, file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    try:
        magic = Unpickler(head).load()
        if magic != _OLD_MAGIC:
            raise QatvalError(
                f"{path} is not a loadable checkpoint: a pickle that torch.save did not write; "
                "save the model with torch.save"
            )
        _, system = Unpickler(head).load(), Unpickler(head).load()
        _refuse_byteorder(path, "little" if system["little_endian"] else "big")
        unpickler = Unpickler(head)
        saved = unpickler.load()
        keys = Unpickler(head).load()
        file.seek(head.tell())
        blocks = {}
        for key in keys:
            (count,) = struct.unpack("<Q", file.read(8))
            blocks[key] = file.tell(), count * unpickler.storages[key].dtype.itemsize
            if sum(blocks[key]) > path.stat().st_size:
                raise EOFError
            file.seek(sum(blocks[key]))
    except (EOFError, struct.error) as error:
        raise _truncated(path) from error

    def read(key: str) -> bytes:
        start, length = blocks[key]
        file.seek(start)
        return file.read(length)

    return saved, read


def _truncated(path: Path) -> QatvalError:
    return QatvalError(f"{path} is truncated: it ends before its pickle or its tensors do; {AGAIN}")


def _refuse_byteorder(path: Path, order: str) -> None:
    if order != sys.byteorder:
        raise QatvalError(
            f"{path} was saved on a machine with {quoted(order)}-endian numbers, this one is "
            f"{sys.byteorder}-endian; save it again on a machine like this"
        )


def _kind_of(head: bytes) -> str:
    """Say what a file is that torch did not save, and what to do."""
    start = head.lstrip()[:64].lower()
    export = "an export ({}), which cannot be fine-tuned; " + _GIVE + " that it was exported from"
    if not head:
        return f"it is empty; {AGAIN}"
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
