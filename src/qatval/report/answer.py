"""What a group of comparable runs says, in short: it picks from the comparison and adds nothing."""

from __future__ import annotations

from collections.abc import Sequence

from qatval.analysis.claims import NetEffect
from qatval.analysis.document import Group, MethodEntry
from qatval.core import formatting
from qatval.report.contrasts import collapse_lines
from qatval.report.group_charts import Contrast, net_name
from qatval.report.terminal import outcome, share_of_fp32

# More controls than these of one outcome are counted instead of named.
_NAMED_CONTROLS = 3


def answer(group: Group) -> dict[str, object]:
    """Return the short answer that a group gives; of a group of nothing but controls, theirs.

    Returns:
        ``outcomes``, what became of which methods, the bad first: said, of whom, whether it is bad.
        ``collapses``, what that says of how often methods collapse.
        ``shares``, methods with the share of FP32 that they keep. ``told``, what is told apart of
        the methods under test. ``rest``, what else there is to say about telling apart.
    """
    tested = [entry for entry in group.methods if entry.role == "method"] or group.methods
    names = {entry.method for entry in tested}
    contrasts: list[Contrast] = [*group.net_effects, *group.differences]
    told = [contrast for contrast in contrasts if contrast.tells and contrast.method in names]
    return {
        "outcomes": _outcomes(group.methods),
        "collapses": collapse_lines(group),
        "shares": [(e.method, share_of_fp32(e)) for e in tested if e.share_of_fp32 is not None],
        "told": told,
        "rest": _rest(contrasts, len(told)),
    }


def _outcomes(methods: Sequence[MethodEntry]) -> list[tuple[str, str, bool]]:
    by_outcome: dict[str, list[MethodEntry]] = {}
    for entry in methods:
        by_outcome.setdefault(outcome(entry), []).append(entry)
    said = []
    for what, entries in by_outcome.items():
        controls = [entry.method for entry in entries if entry.role == "control"]
        if len(controls) > _NAMED_CONTROLS:
            controls = [formatting.count(len(controls), "control")]
        whose = [entry.method for entry in entries if entry.role == "method"] + controls
        bad = any(entry.collapsed or entry.degenerate or entry.disputed for entry in entries)
        said.append((what, ", ".join(whose), bad))
    return sorted(said, key=lambda outcome: not outcome[2])


def _rest(contrasts: Sequence[Contrast], shown: int) -> list[str]:
    if not contrasts:
        return ["Nothing is told apart: no two of these methods held on a seed in common."]
    untold = [contrast for contrast in contrasts if not contrast.tells]
    alike = [c for c in untold if (it := c.equivalence) and it.no_worse and it.no_better]
    opened = [contrast for contrast in untold if contrast not in alike]
    rest = _alike(alike)
    if len(untold) == len(contrasts):
        return [f"Nothing is told apart: {_why(contrasts)}.", *rest]
    if of_controls := len(contrasts) - len(untold) - shown:
        differences = formatting.count(of_controls, "difference")
        rest.append(f"Told apart as well, see below: {differences} of controls.")
    if opened:
        nets = ", ".join(net_name(effect) for effect in opened if isinstance(effect, NetEffect))
        among = f", among them {nets}" if nets else ""
        rest.append(f"Not told apart: {len(opened)} of {len(contrasts)} comparisons{among}.")
    return rest


def _alike(contrasts: Sequence[Contrast]) -> list[str]:
    names = [
        net_name(contrast)
        if isinstance(contrast, NetEffect)
        else f"{contrast.method} and {contrast.reference}"
        for contrast in contrasts
    ]
    margins = {it.margin for contrast in contrasts if (it := contrast.equivalence)}
    return [f"Alike within {margin:g}: {', '.join(names)}." for margin in margins]


def _why(untold: Sequence[Contrast]) -> str:
    judged = [contrast.corrected for contrast in untold if contrast.corrected]
    if judged:
        return f"no corrected p-value of {formatting.count(len(judged), 'test')} is 0.05 or less"
    if any(contrast.collapsed for contrast in untold):
        return "a collapse is behind every difference"
    if any(contrast.disputed for contrast in untold):
        return "a disputed value is behind every difference"
    return "one seed shows no spread"
