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
        told: Whether it is told apart, or shown to be no worse than the plan's margin.
        look: Which look of the plan it is, of how many, from 1; None for none.
        corrected: How the contrast stands; None where there is nothing to compare, or a collapse
            behind it.
        sentences: What the comparison says of it.
    """

    told: bool
    look: tuple[int, int] | None
    corrected: Corrected | None
    sentences: tuple[str, ...]


def standing(runs: Iterable[LoadedRun], contrast: tuple[str, str]) -> Standing:
    """Return how a series stands, by what `compare` says of its runs.

    Args:
        runs: All that the series has completed.
        contrast: Its primary one.
    """
    entries: list[PairedDifference | CollapseDifference] = [
        entry
        for group in compare(runs).groups
        for entry in (*group.differences, *group.collapse_differences)
        if (entry.method, entry.reference) == contrast
    ]
    looks = [e.corrected.look for e in entries if e.corrected and e.corrected.look]
    looked = next(((look.number, look.of) for look in looks if look.number), None)
    return Standing(
        told=any(map(_told, entries)),
        look=looked,
        corrected=next((e.corrected for e in entries if e.corrected), None),
        sentences=tuple(entry.sentence for entry in entries),
    )


def _told(entry: PairedDifference | CollapseDifference) -> bool:
    if entry.tells:
        return True
    alike = entry.equivalence if isinstance(entry, PairedDifference) else None
    return alike is not None and alike.no_worse
