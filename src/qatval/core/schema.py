"""The JSON Schemas that are published with the package: what others may rely on in its files."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, Literal

import jsonschema
import msgspec

from qatval.core.errors import QatvalError
from qatval.core.files import to_json

Schema = Literal["run_summary", "comparison", "thresholds"]


class NotFiniteError(QatvalError, ValueError):
    """A measured value is no number that JSON has."""


@functools.cache
def validator(schema: Schema) -> jsonschema.Draft202012Validator:
    """Return the validator of one of the schemas, formats (date-time) included."""
    text = (files("qatval.core") / "schemas" / f"{schema}.schema.json").read_text("utf-8")
    draft = jsonschema.Draft202012Validator
    return draft(json.loads(text), format_checker=draft.FORMAT_CHECKER)


def is_date_time(text: str) -> bool:
    """Whether a text is a date with a time and an offset from UTC, as RFC 3339 has it."""
    conforms: bool = jsonschema.Draft202012Validator.FORMAT_CHECKER.conforms(text, "date-time")
    return conforms


def violations(document: Mapping[str, Any], schema: Schema = "run_summary") -> list[str]:
    """Return what is wrong with a document, one line per violation, empty if nothing is."""
    errors = sorted(validator(schema).iter_errors(document), key=lambda e: e.json_path)
    return [f"{e.json_path}: {e.message}" for e in errors]


def published(record: msgspec.Struct, schema: Schema) -> str:
    """Return a record as the JSON text that is written, checked against its schema.

    Raises:
        ValueError: If it breaks the schema, which is a defect of qatval.
        NotFiniteError: If it holds a NaN or an infinity.
    """
    document = msgspec.to_builtins(record)
    if found := list(_not_finite(document, schema)):
        raise NotFiniteError(
            f"{', '.join(found[:3])}: not JSON compliant, which takes finite numbers; has the "
            "model diverged?"
        )
    text = to_json(document)
    if problems := violations(json.loads(text), schema):
        raise ValueError(f"{schema} breaks its schema: {'; '.join(problems)}")
    return text


def _not_finite(value: Any, name: str) -> Iterator[str]:
    """Yield where in a document a number is NaN or infinite, as a path with the number."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{name} is {value}"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{name}[{index}]")
