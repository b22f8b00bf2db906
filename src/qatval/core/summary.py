"""The run summary on disk: checked against its schema, written atomically, read with suspicion."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import jsonschema

from qatval.core.errors import QatvalError

SCHEMA_VERSION = "1.1"
SUMMARY_NAME = "run_summary.json"

Summary = dict[str, Any]


@functools.cache
def validator(schema: str) -> jsonschema.Draft202012Validator:
    """Return the validator of one of the schemas that ship in ``qatval/schemas``."""
    text = (files("qatval.core") / "schemas" / f"{schema}.schema.json").read_text("utf-8")
    draft = jsonschema.Draft202012Validator
    checker = jsonschema.validators.extend(draft, {"items": _EachItemOnce()})  # type: ignore[no-untyped-call]
    made: jsonschema.Draft202012Validator = checker(
        json.loads(text), format_checker=draft.FORMAT_CHECKER
    )
    return made


class _EachItemOnce:
    """The keyword "items", with every distinct valid item of an array checked once.

    A thousand runs list the same hundred layers each, and as many rows of numbers about them that
    are all different; checking them one keyword at a time takes nearly all of the time that reading
    the runs takes. Rows that are plainly valid are passed at once.
    """

    def __init__(self) -> None:
        self._valid: set[tuple[int, str]] = set()

    def __call__(
        self, validator: Any, items: Any, instance: Any, schema: Any
    ) -> Iterator[jsonschema.ValidationError]:
        if not isinstance(instance, list):
            return
        flat = _is_flat(items)
        for index, item in enumerate(instance):
            if flat and _plainly_valid(item, items):
                continue
            key = (id(items), json.dumps(item, sort_keys=True))
            if key in self._valid:
                continue
            errors = list(validator.descend(item, items, path=index))
            if not errors:
                self._valid.add(key)
            yield from errors


_PLAIN = {"number": (int, float), "integer": (int,), "string": (str,)}


def _is_flat(schema: Any) -> bool:
    """Whether a schema is about an object of nothing but required numbers and strings."""
    if not isinstance(schema, dict) or schema.keys() != {"type", "required", "properties"}:
        return False
    properties = schema["properties"]
    return set(schema["required"]) == set(properties) and all(
        of.keys() <= {"type", "minimum", "maximum", "description"}
        and isinstance(of.get("type"), str)
        and of["type"] in _PLAIN
        for of in properties.values()
    )


def _plainly_valid(item: Any, schema: Mapping[str, Any]) -> bool:
    """Whether an item is valid under a flat schema; where this cannot tell, it says no."""
    if not isinstance(item, dict):
        return False
    for name, of in schema["properties"].items():
        value = item.get(name)
        if type(value) not in _PLAIN[of["type"]]:  # True is an int, but no number
            return False
        bounds = of.get("minimum", -math.inf), of.get("maximum", math.inf)
        if of["type"] != "string" and not bounds[0] <= value <= bounds[1]:
            return False
    return True


def violations(document: Mapping[str, Any], schema: str = "run_summary") -> list[str]:
    """Return what is wrong with a document, one line per violation, empty if nothing is."""
    errors = sorted(validator(schema).iter_errors(document), key=lambda e: e.json_path)
    return [f"{e.json_path}: {e.message}" for e in errors]


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file's content in one step: a reader sees the old one or the new one, whole.

    Raises:
        QatvalError: If the folder cannot be written to, or the disk is full.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise QatvalError(
            f"cannot write {path}: {error.strerror}; give a folder you may write to, with space "
            "left"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone after a success, or never came to be
            temporary.unlink()


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as indented JSON; a NaN or infinity in it is a ValueError."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_summary(root: Path, summary: Summary) -> None:
    """Write ``run_summary.json`` into a run root.

    Raises:
        ValueError: If the summary breaks the schema, which is a defect of qatval.
        QatvalError: If the run root cannot be written to.
    """
    if problems := violations(summary):
        raise ValueError("run summary breaks its schema: " + "; ".join(problems))
    atomic_write(root / SUMMARY_NAME, to_json(summary))


def load_summary(path: Path) -> Summary:
    """Read a summary that this or an older tool wrote.

    Args:
        path: The file, or the run root that holds it.

    Raises:
        QatvalError: One line that says why the file cannot be used: missing, truncated or not
            JSON, not a number, of a newer schema version, or not valid under the schema.
    """
    file = path / SUMMARY_NAME if path.is_dir() else path
    try:
        summary = json.loads(file.read_text("utf-8"), parse_constant=_reject_constant)
    except OSError as error:
        raise QatvalError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise QatvalError(f"{file} is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise QatvalError(
            f"{file} is not valid JSON (line {error.lineno}: {error.msg}): truncated?"
        ) from error
    except _NotFiniteError as error:
        raise QatvalError(f"{file} holds {error}, which is not JSON") from error
    if not isinstance(summary, dict):
        raise QatvalError(f"{file} holds a {type(summary).__name__}, expected an object")
    version = summary.get("schema_version")
    if isinstance(version, str) and version.split(".")[0] not in ("1",):
        raise QatvalError(f"{file} has schema version {version}, this qatval reads 1.x")
    if problems := violations(summary):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise QatvalError(f"{file} is not a run summary: {problems[0]}{more}")
    return summary


class _NotFiniteError(ValueError):
    pass


def _reject_constant(name: str) -> NoReturn:
    raise _NotFiniteError(name)
