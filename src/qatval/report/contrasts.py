"""What every report says of collapses and contrasts beyond a group's sentences."""

from __future__ import annotations

from collections.abc import Iterator

from qatval.analysis.claims import (
    AgainstPostTraining,
    Contrast,
    NetEffect,
    PairedDifference,
    SeedShare,
)
from qatval.analysis.document import Group
from qatval.analysis.intervals import ALPHA
from qatval.analysis.sequential import nominal
from qatval.analysis.words import look
from qatval.core import formatting

LEGEND = (
    "Intervals are 95 % each, not corrected. Corrected: Holm's p-values over all that the "
    "comparison tests but the primary contrast, which its runs declared before they started; at "
    "most 5 % of comparisons make a false claim among those, and 5 % one in the primary contrast. "
    "P-values of a planned series are corrected for its looks as well. Finds: the smallest effect "
    "that is told at that level in 80 % of cases, as values spread here. docs/statistics.md"
)
"""How to read the sentences; the last word is the page that has the formulas."""

HEADER = (
    *("contrast", "mean", "95 % interval", "p", "corrected p", "over"),
    *("finds", "variance of seeds", "seeds needed", "images needed", "better on"),
)


def collapse_lines(group: Group) -> list[str]:
    """Return how often methods collapsed, those of one count on one line, then how they differ."""
    methods: dict[str, list[str]] = {}
    for rate in group.collapse_rates:
        methods.setdefault(rate.sentence, []).append(rate.method)
    rates = [f"{sentence} ({', '.join(names)})" for sentence, names in methods.items()]
    return [*rates, *(difference.sentence for difference in group.collapse_differences)]


def look_line(group: Group, margin: float | None) -> str:
    """Say at which look of their planned series a group's runs are, nothing without a plan.

    Args:
        group: The group.
        margin: Of the comparison.
    """
    at = group.look
    if at is None:
        return ""
    against = "no margin" if margin is None else f"margin {margin:g}"
    if at.number == 0:
        return f"Planned series: {look(at, ALPHA)}, which claims nothing; {against}"
    seeds = f"{at.seeds} of {at.planned} seeds"
    return f"Planned series: {look(at, nominal(at, ALPHA))}, after {seeds}; {against}"


def contrasts_of(group: Group) -> list[Contrast]:
    """Return all that a group compares: training or not, net effects, differences."""
    against = [group.against_post_training] if group.against_post_training else []
    return [*against, *group.net_effects, *group.differences]


def contrast_rows(group: Group) -> Iterator[list[str]]:
    """Yield the numbers behind each sentence, in the columns of `HEADER`."""
    for contrast in contrasts_of(group):
        corrected, power = contrast.corrected, contrast.power
        yield [
            _name(contrast),
            formatting.signed(contrast.mean),
            formatting.interval(contrast.interval),
            formatting.MISSING if contrast.p_value is None else f"{contrast.p_value:.2g}",
            f"{corrected.p_value:.2g}" if corrected else formatting.MISSING,
            _over(contrast),
            formatting.value(power.effect if power else None),
            _share(power.seeds_share if power else None),
            _needed(power.seeds_needed) if power else formatting.MISSING,
            _needed(power.images_needed) if power else formatting.MISSING,
            "" if isinstance(contrast, NetEffect) else _beats(contrast),
        ]


def _name(contrast: Contrast) -> str:
    match contrast:
        case NetEffect():
            return f"{contrast.method} net of {contrast.control}"
        case AgainstPostTraining():
            return f"{contrast.method} − {contrast.reference} (training or not)"
        case PairedDifference():
            return f"{contrast.method} − {contrast.reference}"
    raise TypeError(type(contrast))


def _over(contrast: Contrast) -> str:
    if contrast.corrected is None:
        if contrast.collapsed:
            return "collapses behind it"
        return "disputed values behind it" if contrast.disputed else "one seed"
    corrected = contrast.corrected
    over = f"{corrected.size} {corrected.family}"
    if corrected.choices > 1:
        over += f", {corrected.choices} choices"
    if (at := corrected.look) is not None:
        over += f", look {at.number} of {at.of}" if at.number else ", no look of its plan"
    return over


def _share(share: float | None) -> str:
    return formatting.MISSING if share is None else formatting.rate(share)


def _needed(count: int | None) -> str:
    return "no number" if count is None else f"{count:,}"


def _beats(contrast: Contrast) -> str:
    assert isinstance(contrast, PairedDifference | AgainstPostTraining)
    share: SeedShare | None = contrast.beats
    if share is None:
        return formatting.MISSING
    of = share.wins + share.losses + share.ties
    if share.interval is None:
        return f"{share.wins} of {of} seeds"
    low, high = map(formatting.rate, share.interval)
    return f"{share.wins} of {of} seeds ({low} to {high})"
