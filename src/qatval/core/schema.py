"""The JSON Schemas that are published with the package: what others may rely on in its files."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

import jsonschema
import msgspec

from qatval.core.files import to_json

Schema = Literal["run_summary", "comparison", "thresholds"]


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
        ValueError: If it breaks the schema or holds a NaN, which is a defect of qatval.
    """
    text = to_json(msgspec.to_builtins(record))
    if problems := violations(json.loads(text), schema):
        raise ValueError(f"{schema} breaks its schema: {'; '.join(problems)}")
    return text
