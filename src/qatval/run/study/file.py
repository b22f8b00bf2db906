"""Study files: a `Study` in TOML; docs/studies.md says what each key means."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from msgspec.structs import FieldInfo

from qatval.core import option_types
from qatval.core.errors import QatvalError, UsageError
from qatval.core.files import read_regular
from qatval.core.formatting import nearest
from qatval.quant.methods import with_controls
from qatval.run.study.engines import Resources
from qatval.run.study.launching import Launching
from qatval.run.study.matrix import EMBEDDED, Precision, Schedule, Study

_LARGEST = 1_000_000  # bytes
_LIMITS: Mapping[str, tuple[float, str]] = {
    "threads": (1, "at least 1"),
    "gpus": (0, "at least 0"),
    "memory_gb": (0.1, "at least 0.1"),
    "minutes": (1, "at least 1"),
}

_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_Parsers = Mapping[str, Callable[[Any], Any]]


def load_study(path: Path) -> Study:
    """Read a study file.

    Args:
        path: The file; paths in it are relative to its folder.

    Raises:
        QatvalError: If it cannot be read, or says what cannot be; the message names file and key.
    """
    return _loaded(path, "a study file", lambda document: _study(document, path))


def load_launching(path: Path) -> Launching:
    """Read the tables ``[resources]``, ``[slurm]`` and ``[ray]`` from a file that has no others.

    Raises:
        QatvalError: If it cannot be read, or says what cannot be; the message names file and key.
    """
    return _loaded(
        path,
        "a file with [resources], [slurm] and [ray]",
        lambda document: _read(Launching, document, "", _LAUNCHING),
    )


def _loaded(path: Path, expected: str, convert: Callable[[dict[str, Any]], _Struct]) -> _Struct:
    content = read_regular(path, _LARGEST, expected=expected)
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # text that is no UTF-8 is a ValueError
        raise QatvalError(f"{path}: is no TOML: {error}") from error
    try:
        return convert(document)
    except (UsageError, argparse.ArgumentTypeError) as error:
        raise QatvalError(f"{path}: {error}") from error


def _study(document: dict[str, Any], file: Path) -> Study:
    controlled = document.pop("with_controls", False)
    if not isinstance(controlled, bool):
        raise UsageError(f"with_controls: expected true or false, got {_shown(controlled)}")

    def path(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise argparse.ArgumentTypeError(f"expected a path, got {_shown(value)}")
        return str((file.parent / Path(value).expanduser()).resolve())

    def image_list(value: Any) -> str:
        found = path(value)
        if not Path(found).is_file():
            raise argparse.ArgumentTypeError(f"expected a file of image names, {found} is none")
        return found

    def methods(value: Any) -> tuple[str, ...]:
        names = msgspec.convert(value, tuple[str, ...])
        return with_controls(names) if controlled else names

    lists: _Parsers = {"methods": methods, "seeds": _seeds}

    def precision(key: str, table: Any) -> Precision:
        return _read(Precision, table, f"{key}.", {"activation_bits": _activation_bits})

    def schedule(key: str, table: Any) -> Schedule:
        return _read(
            Schedule, table, f"{key}.", {**lists, "checkpoint": path, "image_list": image_list}
        )

    return _read(
        Study,
        document,
        "",
        {
            **lists,
            **_LAUNCHING,
            "dataset": lambda value: EMBEDDED if value == EMBEDDED else path(value),
            "gate_root": path,
            "primary": lambda value: option_types.contrast(msgspec.convert(value, str)),
            "quantizations": lambda value: _tables("quantizations", value, precision),
            "trainings": lambda value: _tables("trainings", value, schedule),
        },
        taken=["with_controls"],
        source=str(file),
    )


def _tables(key: str, value: Any, read: Callable[[str, Any], _Struct]) -> dict[str, _Struct]:
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected tables [{key}.NAME], got {_shown(value)}")
    return {name: read(f"{key}.{name}", table) for name, table in value.items()}


def _read(
    kind: type[_Struct],
    table: Any,
    place: str,
    parsers: _Parsers,
    taken: Collection[str] = (),
    **settled: Any,
) -> _Struct:
    """Return a table as what it stands for.

    Args:
        kind: What that is.
        table: Its fields by name.
        place: What stands before the keys in messages.
        parsers: Of the fields whose form in a file is another one.
        taken: Keys that are read elsewhere, for messages.
        settled: Fields that a file does not have.

    Raises:
        UsageError: For a key or a value that is not right, beginning with the key.
    """
    if not isinstance(table, dict):
        raise UsageError(f"{place.rstrip('.')}: expected a table, got {_shown(table)}")
    fields = msgspec.structs.fields(kind)
    known = {found.name: found for found in fields if found.name not in settled}
    values = dict(settled)
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{place}{key}: no such key{nearest(key, (*known, *taken))}")
        try:
            parser = parsers.get(key)
            if parser is None:
                values[key] = msgspec.convert(value, known[key].type)
            else:
                values[key] = parser(value)
        except msgspec.ValidationError as error:
            raise UsageError(f"{place}{key}: {_wrong(error, known[key], value)}") from error
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{place}{key}: {error}") from error
    if missing := [name for name, found in known.items() if found.required and name not in values]:
        raise UsageError(f"{place}{missing[0]}: missing")
    return kind(**values)


def _wrong(error: msgspec.ValidationError, found: FieldInfo, value: Any) -> str:
    if choices := [name for name in _choices(found.type) if isinstance(name, str)]:
        return f"expected one of {', '.join(choices)}, got {_shown(value)}"
    said, _, where = str(error).partition(" - at `$")
    where = where.rstrip("`")
    said = said[:1].lower() + said[1:].replace("`", "").replace(" | null", "")  # TOML has no null
    return f"{said}{f' at {where}' if where else ''}" if "got" in said else f"{said}, got {value!r}"


def _choices(kind: Any) -> list[Any]:
    """Return the literals that a type is made of."""
    found: list[Any] = []
    for argument in get_args(kind):
        found += [argument] if not get_args(argument) else _choices(argument)
    return found


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and value and all(type(seed) is int for seed in value):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        raise argparse.ArgumentTypeError(
            f'expected seeds such as "0..4" or [0, 1, 2], got {_shown(value)}'
        )
    return option_types.seeds(value)


def _activation_bits(value: Any) -> int | None:
    return option_types.activation_bits(str(value))


def _resources(value: Any) -> dict[str, Any]:
    given = msgspec.structs.asdict(_read(Resources, value, "resources.", {}))
    for key, (least, said) in _LIMITS.items():
        if given[key] is not None and given[key] < least:
            raise UsageError(f"resources.{key}: expected {said}, got {given[key]}")
    return {key: given[key] for key in value}


def _ray(value: Any) -> dict[str, str]:
    for key in value if isinstance(value, dict) else ():
        if key != "address":
            raise UsageError(f"ray.{key}: no such key; expected address")
        if not isinstance(value[key], str):
            raise UsageError(f"ray.address: expected str, got {_shown(value[key])}")
    return msgspec.convert(value, dict[str, str])


_LAUNCHING: _Parsers = {"resources": _resources, "ray": _ray}


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{value!r:.60}..."
