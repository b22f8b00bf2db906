"""What methods gain: against each other, and net of their controls.

Averaging removes the noise of the learning rate from any training, and fresh BatchNorm statistics
do some of what QC learns. A gain is the method's own only as far as it exceeds its control's::

    net = (M - R) - (C - CR)

    averaging    M = X+ema  R = X    C = fp32+ema  CR = fp32
    teacher      M = distill R = baseline  C = fp32+distill CR = fp32
    correction   M = X+qc   R = X    C = X+bn      CR = X
                                     C = fp32+qc   CR = fp32

paired by seed, with the interval of `intervals`. Controls are there to be subtracted: a
comparison across FP32 and quantized runs is made in no other way. QC has two controls: one tells
whether learning does more than fresh statistics, the other whether it corrects quantization, or
whatever model it is given. Of an averaged X the FP32 model is averaged as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

import msgspec

from qatval.analysis.claims import (
    NetEffect,
    NetPair,
    NotNet,
    PairedDifference,
)
from qatval.analysis.collapses import endings, seed_share
from qatval.analysis.document import Role
from qatval.analysis.family import Finding, Verdict
from qatval.analysis.measuring import Measured, measure
from qatval.analysis.pairing import evaluate, net_of, pair_by_seed, scores_of
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.errors import UsageError
from qatval.quant.methods import BASELINE, Method, method, method_names, part_names
from qatval.quant.methods.part import Effect


def role(name: str) -> Role:
    """Return whether a method is under test, as unknown ones are, or there to be compared with."""
    known = _known(name)
    return "control" if known is not None and known.is_control else "method"


def method_order(names: Iterable[str]) -> list[str]:
    """Sort method names: the contract's in its order, others by their parts, controls last."""
    compared, known = method_names(), part_names()

    def rank(name: str) -> tuple[Any, ...]:
        if name in compared:
            return (0, compared.index(name))
        found = _known(name)
        if found is None:
            return (1, False, 1, name)
        # training comes first in a name, so ptq would precede the controls that train
        untrained = found.training is None
        return (1, found.is_control, 0, untrained, [known.index(p.name) for p in found.parts])

    return sorted(set(names), key=rank)


def worth_comparing(runs: Iterable[LoadedRun]) -> list[tuple[str, str]]:
    """Return the pairs of a group's methods, method and reference, that are worth a sentence.

    The contract's methods among each other, each method against the baseline, and each method or
    control against what it extends by one part.
    """
    quantized = {run.method: run.quantized for run in runs}
    return [
        (name, reference)
        for reference, name in permutations(method_order(quantized), 2)
        if quantized[reference] == quantized[name] and _worth_comparing(name, reference)
    ]


def paired_differences(
    runs: Sequence[LoadedRun],
    compared: Iterable[tuple[str, str]],
    *,
    primary: tuple[str, str] | None = None,
    margin: float | None = None,
) -> list[Finding[PairedDifference]]:
    """Return the differences of pairs of methods, paired by seed.

    Args:
        runs: Of one group.
        compared: Method and reference of each; a pair without a seed on which both held is left
            out.
        primary: The pair that was declared before the runs.
        margin: Within which they are tested to be alike.
    """
    scores = scores_of(runs)
    found = []
    for pair in compared:
        if contrasts := pair_by_seed(runs, *pair):
            measured = measure(runs, contrasts, scores, pair, margin)
            found.append(_difference(runs, pair, measured, primary=pair == primary))
    return found


def _difference(
    runs: Sequence[LoadedRun], pair: tuple[str, str], measured: Measured, *, primary: bool
) -> Finding[PairedDifference]:
    def say(verdict: Verdict | None) -> PairedDifference:
        return PairedDifference(
            method=pair[0],
            reference=pair[1],
            beats=seed_share(runs, *pair),
            sentence=measured.ended(difference_sentence(*pair, measured, verdict), verdict),
            **measured.fields(verdict),
        )

    return Finding(measured.test(primary=primary), say)


def effects_of(name: str) -> list[Effect]:
    """Return what a method's gain has to exceed, nothing for one whose last part has no control."""
    found = _known(name)
    if found is None or not found.parts or found.is_control:
        return []
    return found.parts[-1].effects(found)


def net_effects(
    runs: Sequence[LoadedRun], mode: str, *, margin: float | None = None
) -> list[Finding[NetEffect]]:
    """Return what a group's methods gain net of their controls; ``mode`` names its quantization."""
    scores = scores_of(runs)
    found = []
    for effect in _effects(runs):
        gains, control_gains = (pair_by_seed(runs, *e) for e in (effect.gain, effect.control))
        contrasts = net_of(gains, control_gains)
        if not contrasts:
            continue
        ours, theirs = (
            evaluate([by_seed[seed] for seed in contrasts], scores.values[:, :1])[:, 0].tolist()
            for by_seed in (gains, control_gains)
        )
        behind = dict.fromkeys((*effect.gain, *effect.control))
        measured = measure(runs, contrasts, scores, [*behind], margin)
        found.append(_net_effect(effect, mode, measured, ours, theirs))
    return found


def _net_effect(
    effect: Effect,
    mode: str,
    measured: Measured,
    gains: Sequence[float],
    control_gains: Sequence[float],
) -> Finding[NetEffect]:
    gain, control_gain = (math.fsum(each) / len(each) for each in (gains, control_gains))
    pairs = [
        NetPair(*msgspec.structs.astuple(pair), *both)
        for pair, *both in zip(measured.pairs, gains, control_gains, strict=True)
    ]

    def say(verdict: Verdict | None) -> NetEffect:
        sentence = net_sentence(effect, mode, gain, control_gain, measured, verdict)
        return NetEffect(
            kind=effect.kind,
            method=effect.gain[0],
            reference=effect.gain[1],
            control=effect.control[0],
            control_reference=effect.control[1],
            gain=gain,
            control_gain=control_gain,
            sentence=measured.ended(sentence, verdict),
            **measured.fields(verdict) | {"pairs": pairs},
        )

    return Finding(measured.test(), say)


def not_net(runs: Sequence[LoadedRun]) -> NotNet | None:
    """Say which gains of a group lack a control to be net of; None where none does."""
    gains, lacking = dict[str, None](), set()
    for effect in _effects(runs):
        paired = pair_by_seed(runs, *effect.gain)
        completed = {name: paired.keys() & endings(runs, name).keys() for name in effect.control}
        if not paired or set.intersection(*completed.values()):
            continue
        gains[f"{effect.gain[0]} over {effect.gain[1]}"] = None
        lacking |= {name for name, seeds in completed.items() if not seeds} or {*effect.control}
    if not gains:
        return None
    missing = method_order(lacking)
    gain = "gain" if len(gains) == 1 else "gains"
    return NotNet(
        missing,
        f"the {gain} of {_listed([*gains])} {_are([*gains])} not net of every control: "
        f"{_listed(missing)} {_are(missing)} missing (run with --with-controls)",
    )


def difference_sentence(
    name: str, reference: str, difference: Measured, verdict: Verdict | None
) -> str:
    """Say in words what the paired difference of two methods tells."""
    n, mean = difference.mean.seeds, difference.mean
    seeds, value = formatting.count(n, "seed"), difference.value
    if difference.selective:
        where = formatting.count(difference.common_seeds, "seed")
        return f"where both held, {n} of {where}, {name} scores {value} against {reference}"
    if verdict is None:
        return f"{seeds} cannot tell {name} from {reference}: {value}"
    if not verdict.tells:
        return f"{seeds} {_do(n)} not tell {name} from {reference}: {value}"
    if mean.mean > 0:
        return f"{name} is better than {reference} on {mean.positive} of {seeds}, {value}"
    return f"{name} is worse than {reference} on {mean.negative} of {seeds}, {value}"


def net_sentence(
    effect: Effect,
    mode: str,
    gain: float,
    control_gain: float,
    net: Measured,
    verdict: Verdict | None,
) -> str:
    """Say in one sentence what a gain is worth beside its control's, and no more than it tells.

    ``gain`` and ``control_gain`` are means over the seeds of the net effect.
    """
    name, reference = effect.gain
    verbs = ("gain", "lose") if effect.plural else ("gains", "loses")
    control = f"{effect.control_does} {_moves(control_gain, *verbs)}"
    against = "over" if gain >= 0 else "against"
    seeds = formatting.count(net.mean.seeds, "seed")
    said = (
        f"At {mode} {name} {_moves(gain)} {against} {reference}; {control}: net {net.value} on "
        f"{seeds}"
    )
    if net.selective:
        return said
    if verdict is None:
        return f"{said}, which cannot tell"
    return f"{said}, {_conclusion(effect, gain, net.mean.mean, verdict)}"


def _conclusion(effect: Effect, gain: float, net: float, verdict: Verdict) -> str:
    what, target, control = effect.what, effect.target, effect.control_is
    if not verdict.tells:
        return f"which does not tell the two apart: no gain beyond that of {control} is shown"
    other = f"{target} than for FP32" if target else f" than {control}"
    if net > 0:
        nothing = "" if gain > 0 else ", although it gains nothing here"
        return f"so {what} does more{other}{nothing}"
    if not target:
        return f"so {what} does less{other}, which learn nothing"
    cure = ", and what it gains here is not a cure of quantization" if gain > 0 else ""
    return f"so {what} does less{other}{cure}"


def _moves(value: float, up: str = "gains", down: str = "loses") -> str:
    moved = formatting.signed(value) if value >= 0 else formatting.signed(-value)[1:]
    return f"{up if value >= 0 else down} {moved}"


def _effects(runs: Iterable[LoadedRun]) -> list[Effect]:
    names = method_order({run.method for run in runs if run.quantized})
    return [effect for name in names for effect in effects_of(name)]


def _worth_comparing(name: str, reference: str) -> bool:
    compared = method_names()
    if name in compared and reference in compared:
        return compared.index(name) > compared.index(reference)
    if reference == BASELINE and role(name) == "method":
        return True
    ours, theirs = _known(name), _known(reference)
    if ours is None or theirs is None:
        return False
    alike = not theirs.parts or (ours.training is None) == (theirs.training is None)
    own, other = ({part.name for part in one.parts} for one in (ours, theirs))
    return alike and len(own) == len(other) + 1 and other < own


def _known(name: str) -> Method | None:
    """Return what a method's name stands for, None for one that is not known here."""
    try:
        return method(name)
    except UsageError:
        return None


def _do(count: int) -> str:
    return "does" if count == 1 else "do"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
