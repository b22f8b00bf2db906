"""Whether a run's files are still those that the run left, by the digests that it recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qatval.core.digests import FileDigest, digest_beside, visible_files
from qatval.core.errors import QatvalError
from qatval.core.files import inside, sha256_of
from qatval.core.summary import LOG_NAME, SUMMARY_NAME, RunSummary

_NAMED = 3


def summary_differences(file: Path, summary: RunSummary, fits: bool | None) -> list[str]:
    """Say in what a summary is not as the run wrote it.

    Args:
        file: The summary's.
        summary: What it says now.
        fits: Whether the digest beside it does, None where there is none: older tools write none.
    """
    if fits is False:
        return [f"{file.name} was changed"]
    if fits is None and summary.files is not None:
        return [f"{digest_beside(file).name} is missing"]
    return []


def file_differences(root: Path, recorded: Mapping[str, FileDigest]) -> list[str]:
    """Say which of the files that a run recorded were changed or are missing, a line each."""
    return [f"{name} {said}" for name, of in recorded.items() if (said := _differs(root, name, of))]


def additional_files(root: Path, recorded: Mapping[str, FileDigest]) -> Iterator[str]:
    """Yield files of a run root that the run did not leave there.

    What is hidden, or lies in a run root below this one, belongs to others.
    """
    known = {*recorded, SUMMARY_NAME, digest_beside(Path(SUMMARY_NAME)).name, LOG_NAME}
    for file in visible_files(root, but_below=SUMMARY_NAME):
        name = file.relative_to(root).as_posix()
        if name not in known:
            yield name


def in_short(differences: Sequence[str]) -> str:
    """Write differences on one line: the first, and how many more."""
    more = len(differences) - _NAMED
    return ", ".join([*differences[:_NAMED], *([f"{more} more"] if more > 0 else [])])


def _differs(root: Path, name: str, recorded: FileDigest) -> str:
    try:
        path = inside(root, name)
        if not os.path.lexists(path):
            return "is missing"
        if not path.is_file():
            return "is no file any more"
        if path.stat().st_size != recorded.bytes or sha256_of(path) != recorded.sha256:
            return "was changed"
    except QatvalError:
        return "leads out of the run root"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""
