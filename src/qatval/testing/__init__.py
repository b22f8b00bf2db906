"""Validation with pytest, and runs made up for tests of what reads them.

The plugin (`qatval.testing.plugin`, found by pytest itself): options, scenarios as parameters, one
training per group of them.
"""

from qatval.testing.builders import (
    as_json,
    build_summary,
    build_thresholds,
    changed,
    loaded,
    merged,
    reduced_to_required,
)

__all__ = [
    "as_json",
    "build_summary",
    "build_thresholds",
    "changed",
    "loaded",
    "merged",
    "reduced_to_required",
]
