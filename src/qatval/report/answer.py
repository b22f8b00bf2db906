"""What a group of comparable runs says, in short: it picks from the comparison and adds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qatval.analysis.document import Group, MethodEntry, NetEffect
from qatval.analysis.intervals import SEEDS_TO_TELL
from qatval.core import formatting
from qatval.report.group_charts import Contrast, net_name
from qatval.report.terminal import outcome, share_of_fp32

# More controls than these of one outcome are counted instead of named.
_NAMED_CONTROLS = 3


@dataclass(frozen=True)
class Answer:
    """The short answer.

    Attributes:
        outcomes: What became of which methods, the bad first: said, of whom, and whether it is bad.
        shares: Methods with the share of FP32 that they keep.
        told: What is told apart of the methods under test.
        rest: What else there is to say about telling apart.
    """

    outcomes: Sequence[tuple[str, str, bool]]
    shares: Sequence[tuple[str, str]]
    told: Sequence[Contrast]
    rest: Sequence[str]


def answer(group: Group) -> Answer:
    """Return the short answer that a group gives; of a group of nothing but controls, theirs."""
    tested = [entry for entry in group.methods if entry.role == "method"] or group.methods
    names = {entry.method for entry in tested}
    contrasts: list[Contrast] = [*group.net_effects, *group.differences]
    told = [contrast for contrast in contrasts if contrast.tells and contrast.method in names]
    return Answer(
        outcomes=_outcomes(group.methods),
        shares=[(e.method, share_of_fp32(e)) for e in tested if e.share_of_fp32 is not None],
        told=told,
        rest=_rest(contrasts, len(told)),
    )


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
        return ["Nothing is told apart: no two of these methods have a seed in common to compare."]
    untold = [contrast for contrast in contrasts if not contrast.tells]
    if len(untold) == len(contrasts):
        seeds = max(contrast.seeds for contrast in contrasts)
        why = "no 95 % interval excludes 0"
        if all(contrast.interval is None for contrast in contrasts):
            why = f"{formatting.count(seeds, 'seed')} cannot tell, it takes {SEEDS_TO_TELL}"
        return [f"Nothing is told apart: {why}."]
    rest = []
    if of_controls := len(contrasts) - len(untold) - shown:
        differences = formatting.count(of_controls, "difference")
        rest.append(f"Told apart as well, see below: {differences} of controls.")
    if untold:
        nets = ", ".join(net_name(effect) for effect in untold if isinstance(effect, NetEffect))
        among = f", among them {nets}" if nets else ""
        rest.append(f"Not told apart: {len(untold)} of {len(contrasts)} comparisons{among}.")
    return rest
