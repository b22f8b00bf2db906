"""Whether a series of seeds goes on: what its comparison says of the primary contrast so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qatval.analysis.claims import CollapseDifference, Corrected, PairedDifference
from qatval.analysis.comparison import compare
from qatval.analysis.runs import LoadedRun


@dataclass(frozen=True)
class Standing:
    """How the primary contrast of a series stands.

    Attributes:
        told: In words what is told of it, which ends the series; None while nothing is.
        corrected: Its claim and the look it stands at; None where there is nothing to compare yet,
            or a collapse or a disputed value behind the difference.
        sentences: What the comparison says of it.
    """

    told: str | None
    corrected: Corrected | None
    sentences: tuple[str, ...]


def standing(runs: Iterable[LoadedRun], contrast: tuple[str, str]) -> Standing:
    """Return how a series stands, by what `compare` says of its runs.

    Args:
        runs: All that the series has completed.
        contrast: Its primary one.
    """
    entries: list[PairedDifference | CollapseDifference] = []
    for group in compare(runs).groups:
        entries += (it for it in group.differences if (it.method, it.reference) == contrast)
        entries += (
            it for it in group.collapse_differences if (it.method, it.reference) == contrast
        )
    return Standing(
        next((told for entry in entries if (told := _told(entry))), None),
        next((entry.corrected for entry in entries if entry.corrected), None),
        tuple(entry.sentence for entry in entries),
    )


def _told(entry: PairedDifference | CollapseDifference) -> str | None:
    """Return what an entry tells; a difference beside a margin tells that it is not worse."""
    if isinstance(entry, CollapseDifference):
        told = f"how often {entry.method} and {entry.reference} collapse is told apart"
        return told if entry.tells else None
    if entry.tells:
        return f"{entry.method} is told apart from {entry.reference}"
    alike = entry.equivalence
    if alike is None or not alike.no_worse:
        return None
    return f"{entry.method} is no worse than {entry.reference} by {alike.margin:g} or more"
