"""What every sentence about a contrast adds to its numbers: how it stands, what could be found.

Absence of evidence is worded as that: what is not told apart is open, and only a test against a
margin says that two methods are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from qatval.analysis.claims import Corrected, Equivalence, Look, Power
from qatval.analysis.family import Verdict
from qatval.core import formatting

# An effect that is found in 80 % is told 1.1 times too large, which changes no reading.
_OVERSTATED = 1.2


def corrected(verdict: Verdict) -> Corrected:
    """Return a verdict as the comparison records it."""
    return Corrected(
        family=verdict.family,
        size=verdict.size,
        choices=verdict.choices,
        p_value=verdict.p_values[0],
        level=verdict.level,
        look=verdict.look,
    )


def standing(verdict: Verdict) -> str:
    """Say whether a sentence is the primary one or which correction it stands under."""
    p_value = formatting.p_value(verdict.p_values[0])
    primary = verdict.family == "primary"
    if primary and verdict.size == 1 and verdict.look is None:
        return f"primary, {p_value}"
    corrected = []
    if not primary or verdict.size > 1:
        corrected.append(f"over {verdict.size}")
    if verdict.choices > 1:
        corrected.append(f"{verdict.choices} choices")
    if verdict.look is not None:
        corrected.append(f"for {look(verdict.look, verdict.level)}")
    said = f"corrected {' and '.join(corrected)}: {p_value}"
    return f"primary, {said}" if primary else said


def look(at: Look, level: float) -> str:
    """Say which look at a series it is, and at what level an uncorrected p-value is tested."""
    if at.number:
        return f"look {at.number} of {at.of} (level {formatting.level(level)})"
    return f"no look of its plan ({at.seeds} of {at.planned} seeds)"


def could_find(power: Power) -> str:
    """Say what effect a contrast finds, what varies it, and what finding the target takes."""
    finds = f"finds {formatting.value(power.effect)} in {formatting.rate(power.power)}"
    if power.seeds_share is not None and power.images_share is not None:
        finds += f" (seeds {formatting.rate(power.seeds_share)} of the variance)"
    elif power.seeds_share is not None:
        finds += " (images not resampled)"
    if power.effect <= power.target:
        return finds
    target, takes = formatting.value(power.target), []
    if power.seeds_needed is not None:
        takes.append(formatting.count(power.seeds_needed, "seed"))
    if power.images_needed is not None:
        takes.append(formatting.count(power.images_needed, "image"))
    if not takes:
        return f"{finds}, {target} takes more seeds and more images"
    if power.seeds_needed is None and power.images_share is not None:
        return f"{finds}, {target} takes {takes[0]}, no number of seeds"
    return f"{finds}, {target} takes {' or '.join(takes)}"


def overstated(mean: float, power: Power) -> str:
    """Say what half of a mean that is told would be told as, nothing where that is about half.

    Args:
        mean: Of the contrast.
        power: Of the same.
    """
    half, told_as = mean / 2, power.half_told_as
    if told_as is None or told_as < _OVERSTATED * abs(half):
        return ""
    smaller, seen = (formatting.signed(math.copysign(size, mean)) for size in (half, told_as))
    return f"may be overstated: a true {smaller} would be told as {seen} on average"


def equivalence(found: Equivalence) -> str:
    """Say what is shown of a contrast beside a margin."""
    margin = f"{found.margin:g}"
    if found.no_worse and found.no_better:
        return f"alike within {margin}"
    if found.no_worse:
        return f"no worse by {margin} or more"
    if found.no_better:
        return f"no better by {margin} or more"
    return f"whether alike within {margin} is open"


def behind(collapsed: Mapping[str, int], disputed: Mapping[str, int], common: int) -> str:
    """Say whose runs are missing from a mean, collapsed or disputed: it is no verdict then."""
    said = [
        f"{what} {', '.join(f'{name} on {count}' for name, count in whose.items())}"
        for what, whose in (("collapsed", collapsed), ("disputed by a check", disputed))
        if whose
    ]
    return f"no verdict: of {formatting.count(common, 'seed')} {' and '.join(said)}"
