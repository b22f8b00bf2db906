"""The comparison on disk: JSON for machines, Markdown for reviews, HTML to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qatval.analysis.document import Comparison
from qatval.analysis.runs import LoadedRun
from qatval.core.errors import UsageError
from qatval.core.files import atomic_write
from qatval.core.schema import published
from qatval.report.comparison_markdown import render_comparison

SUFFIXES = (".json", ".md", ".html")


@dataclass(frozen=True)
class Written:
    """Where the three files are."""

    json: Path
    markdown: Path
    html: Path


def write_comparison(
    comparison: Comparison, runs: Iterable[LoadedRun], path: Path, cache_dir: Path | None = None
) -> Written:
    """Write the three files of a comparison beside each other.

    Args:
        comparison: The comparison.
        runs: What it was made from: the HTML report shows their histories and images.
        path: Any of the three; the others differ from it in the suffix.
        cache_dir: Where the subsets are whose images may be shown, None for the default cache.

    Raises:
        UsageError: If the path is none of the three.
        ValueError: If it breaks its schema, which is a defect of qatval.
        QatvalError: If the folder cannot be written to.
    """
    from qatval.report.html import render_html

    check_path(path)
    written = Written(*(path.with_suffix(suffix) for suffix in SUFFIXES))
    atomic_write(written.json, published(comparison, "comparison"))
    atomic_write(written.markdown, render_comparison(comparison))
    atomic_write(written.html, render_html(comparison, list(runs), cache_dir))
    return written


def check_path(path: Path) -> None:
    """Refuse a path that does not end in one of `SUFFIXES`, by a `UsageError`."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"'{path}' is no name for a comparison; expected one that ends in "
            f"{', '.join(SUFFIXES)}, e.g. {path / 'comparison.json'}"
        )
