"""How often methods collapse: rates with exact intervals, and exact tests between two methods.

A run counts as collapsed here if it ended with nothing to compare: below half of its best, with no
number at all (it diverged), or without ever having been worth anything. Whether a run held whose
value a check disputes is not known: it counts for nothing, and what it is left out of says so.

Rates have Clopper and Pearson's interval (Biometrika 26 (1934), 404-413) at 95 %, two-sided. Where
none or all of n runs collapsed only one bound can say anything, and the words have the one-sided
one, ``1 - 0.05^(1/n)`` above 0 of n: 78 % for two runs.

Methods are compared on the seeds that both completed, by McNemar's test (Psychometrika 12 (1947),
153-157) in its exact form: of the seeds on which one of the two alone collapsed, a fair coin says
which. Six such seeds are the least that can tell at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from qatval.analysis.claims import CollapseDifference, CollapseRate, SeedShare
from qatval.analysis.family import Finding, Test, Verdict
from qatval.analysis.intervals import ALPHA
from qatval.analysis.power import POWER
from qatval.analysis.runs import LoadedRun
from qatval.analysis.words import corrected, standing
from qatval.core import formatting

Ending = Literal["collapsed", "disputed", "held"]
"""What became of a method on a seed, the worst first; of several runs the worst counts."""

ONE_IN_FIVE = 0.2
_FEW = 4


def collapse_rates(runs: Sequence[LoadedRun], methods: Sequence[str]) -> list[CollapseRate]:
    """Return the collapse rate of each method that has an outcome, in the order given."""
    rates = []
    for method in methods:
        completed = [run for run in runs if run.method == method and run.completed]
        counted = [run for run in completed if run.outcome != "disputed"]
        if not counted:
            continue
        collapsed, of = sum(run.collapsed for run in counted), len(counted)
        disputed = len(completed) - of
        left_out = f"; {formatting.count(disputed, 'disputed run')} not counted" if disputed else ""
        rates.append(
            CollapseRate(
                method=method,
                collapsed=collapsed,
                of=of,
                diverged=sum(run.final is None for run in counted),
                interval=clopper_pearson(collapsed, of),
                sentence=_rate(collapsed, of) + left_out,
            )
        )
    return rates


def endings(runs: Iterable[LoadedRun], method: str) -> dict[int, Ending]:
    """Return what became of a method on each seed that it completed."""
    ranked: tuple[Ending, ...] = get_args(Ending)
    found: dict[int, Ending] = {}
    for run in runs:
        if run.method == method and run.completed:
            own: Ending = "collapsed" if run.collapsed else "held"
            own = "disputed" if run.outcome == "disputed" else own
            found[run.seed] = min(own, found.get(run.seed, own), key=ranked.index)
    return found


def collapse_difference(
    runs: Sequence[LoadedRun], method: str, reference: str, *, primary: bool
) -> Finding[CollapseDifference] | None:
    """Compare how often two methods collapse on the seeds on which neither is disputed.

    None where neither collapsed on any of them.
    """
    ours, theirs = endings(runs, method), endings(runs, reference)
    common = ours.keys() & theirs.keys()
    seeds = [seed for seed in common if "disputed" not in (ours[seed], theirs[seed])]
    collapses = [(ours[seed] == "collapsed", theirs[seed] == "collapsed") for seed in seeds]
    method_alone, reference_alone, both = map(
        collapses.count, ((True, False), (False, True), (True, True))
    )
    if not method_alone + reference_alone + both:
        return None
    p_value = mcnemar(method_alone, reference_alone)
    alone = method_alone + reference_alone

    def say(verdict: Verdict | None) -> CollapseDifference:
        assert verdict is not None
        counts = method_alone + both, reference_alone + both
        return CollapseDifference(
            method=method,
            reference=reference,
            seeds=len(seeds),
            collapsed=counts[0],
            reference_collapsed=counts[1],
            method_alone=method_alone,
            reference_alone=reference_alone,
            p_value=p_value,
            corrected=corrected(verdict),
            tells=verdict.tells,
            smallest_rate=smallest_rate(len(seeds), verdict.level),
            sentence=_difference((method, reference), counts, len(seeds), alone, verdict)
            + left_out,
        )

    disputed = len(common) - len(seeds)
    left_out = f"; {formatting.count(disputed, 'disputed seed')} not counted" if disputed else ""
    able = mcnemar(alone, 0) <= ALPHA
    behind = (run.run_id for run in runs if run.completed and run.method in (method, reference))
    evidence = method, reference, frozenset(behind)
    return Finding(Test((p_value,), primary=primary, counted=able, evidence=evidence), say)


def seed_share(runs: Sequence[LoadedRun], method: str, reference: str) -> SeedShare | None:
    """Return on how many of the seeds on which neither is disputed a method beats another.

    A seed has the mean of a method's runs on it. Who holds beats who collapsed; two that collapsed
    are even.
    """
    ours, theirs = _values(runs, method), _values(runs, reference)
    pairs = [(ours[seed], theirs[seed]) for seed in ours.keys() & theirs.keys()]
    if not pairs:
        return None
    wins = sum(one > other for one, other in pairs)
    losses = sum(one < other for one, other in pairs)
    interval = clopper_pearson(wins, wins + losses) if wins + losses else None
    return SeedShare(wins, losses, len(pairs) - wins - losses, interval)


def clopper_pearson(count: int, of: int) -> tuple[float, float]:
    """Return the exact two-sided 95 % interval of a rate that `count` of `of` were seen of."""
    from scipy.special import betaincinv

    low = 0.0 if count == 0 else float(betaincinv(count, of - count + 1, ALPHA / 2))
    high = 1.0 if count == of else float(betaincinv(count + 1, of - count, 1 - ALPHA / 2))
    return low, high


def mcnemar(one: int, other: int) -> float:
    """Return the exact two-sided p-value of so many discordant pairs each way."""
    n = one + other
    tail = float(sum(math.comb(n, k) for k in range(min(one, other) + 1))) / 2.0**n
    return min(1.0, 2 * tail)


def smallest_rate(seeds: int, level: float) -> float | None:
    """Return which collapse rate is told from never collapsing with the probability `POWER`.

    None where no rate is, for want of seeds.
    """
    from scipy.special import betaincinv

    needed = math.ceil(math.log2(2 / level))  # 2 / 2^needed is the smallest p-value
    if needed > seeds:
        return None
    return float(betaincinv(needed, seeds - needed + 1, POWER))


def gets_through(runs: int, rate: float = ONE_IN_FIVE) -> float:
    """Return how often a method that collapses at some rate holds on so many runs in a row."""
    return float((1 - rate) ** runs)


def _values(runs: Sequence[LoadedRun], method: str) -> dict[int, float]:
    """Return a method's value by seed, -infinity where it collapsed, none where it is disputed."""
    known = endings(runs, method)
    finals: dict[int, list[float]] = {}
    for run in runs:
        if run.method == method and run.completed and known[run.seed] != "disputed":
            value = -math.inf if run.collapsed or run.final is None else run.final
            finals.setdefault(run.seed, []).append(value)
    return {seed: sum(values) / len(values) for seed, values in finals.items()}


def _rate(collapsed: int, of: int) -> str:
    said = f"{collapsed} of {of} collapsed: the rate is"
    bound = 1 - ALPHA ** (1 / of)
    if collapsed == 0:
        below = f"{said} below {formatting.rate(bound)}"
        through = formatting.rate(gets_through(of))
        few = f"; one that collapses in a run of five gets through in {through}"
        return below + few if of <= _FEW else below
    if collapsed == of:
        return f"{said} above {formatting.rate(1 - bound)}"
    low, high = clopper_pearson(collapsed, of)
    return f"{said} between {formatting.rate(low)} and {formatting.rate(high)}"


def _difference(
    names: tuple[str, str], counts: tuple[int, int], seeds: int, alone: int, verdict: Verdict
) -> str:
    (method, reference), (ours, theirs) = names, counts
    on = f"on {ours} of {formatting.count(seeds, 'seed')} against {theirs}"
    if verdict.tells:
        how = "less" if ours < theirs else "more"
        said = f"{method} collapses {how} often than {reference}, {on}"
    else:
        said = f"whether {method} collapses more or less often than {reference} is open: {on}"
    if mcnemar(alone, 0) > ALPHA:
        return (
            f"{said}; it takes 6 seeds on which one of the two alone collapses to tell, there "
            f"{'is' if alone == 1 else 'are'} {alone}"
        )
    rate = smallest_rate(seeds, verdict.level)
    found = "no rate" if rate is None else f"a rate of {formatting.rate(rate)} against none"
    return f"{said}; {standing(verdict)}; finds {found}"
