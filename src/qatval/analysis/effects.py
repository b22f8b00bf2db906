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
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qatval.analysis.document import NetEffect, NetPair, NotNet, Pair, PairedDifference, Role
from qatval.analysis.intervals import (
    LEVEL,
    SEEDS_TO_TELL,
    MeanContrast,
    image_errors,
    mean_contrast,
)
from qatval.analysis.pairing import Contrast, Scores, evaluate, net_of, pair_by_seed, scores_of
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


def paired_differences(runs: Sequence[LoadedRun]) -> list[PairedDifference]:
    """Return the differences of two methods of a group that are worth a sentence, paired by seed.

    The contract's methods among each other, each method against the baseline, and each method or
    control against what it extends by one part.
    """
    quantized = {run.method: run.quantized for run in runs}
    scores = scores_of(runs)
    found = []
    for reference, name in permutations(method_order(quantized), 2):
        if quantized[reference] != quantized[name] or not _worth_comparing(name, reference):
            continue
        if contrasts := pair_by_seed(runs, name, reference):
            difference, fields = measured(contrasts, scores)
            sentence = difference_sentence(name, reference, difference)
            found.append(
                PairedDifference(method=name, reference=reference, sentence=sentence, **fields)
            )
    return found


def measured(
    contrasts: Mapping[int, Contrast], scores: Scores
) -> tuple[MeanContrast, dict[str, Any]]:
    """Return the mean of contrasts by seed, and what every kind of difference records of it."""
    values = evaluate(contrasts.values(), scores.values)
    mean = mean_contrast(values, scores.images)
    return mean, {
        "mean": mean.mean,
        "interval": mean.interval,
        "level": LEVEL,
        "seeds": mean.seeds,
        "positive": mean.positive,
        "negative": mean.negative,
        "tells": mean.excludes_zero,
        "shared_training": all(contrast.shared_training for contrast in contrasts.values()),
        "images_resampled": mean.images_resampled,
        "pairs": pairs(contrasts, values),
    }


def pairs(contrasts: Mapping[int, Contrast], values: NDArray[np.float64]) -> list[Pair]:
    """List contrasts by seed with the values that `evaluate` found for them."""
    each = zip(contrasts.items(), values[:, 0].tolist(), image_errors(values), strict=True)
    return [Pair(seed, value, c.shared_training, error) for (seed, c), value, error in each]


def effects_of(name: str) -> list[Effect]:
    """Return what a method's gain has to exceed, nothing for one whose last part has no control."""
    found = _known(name)
    if found is None or not found.parts or found.is_control:
        return []
    return found.parts[-1].effects(found)


def net_effects(runs: Sequence[LoadedRun], mode: str) -> list[NetEffect]:
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
        gain, control_gain = (math.fsum(values) / len(values) for values in (ours, theirs))
        net, fields = measured(contrasts, scores)
        net_pairs = [
            NetPair(*msgspec.structs.astuple(pair), *both)
            for pair, *both in zip(fields["pairs"], ours, theirs, strict=True)
        ]
        found.append(
            NetEffect(
                kind=effect.kind,
                method=effect.gain[0],
                reference=effect.gain[1],
                control=effect.control[0],
                control_reference=effect.control[1],
                gain=gain,
                control_gain=control_gain,
                sentence=net_sentence(effect, mode, gain, control_gain, net)
                + _collapses(runs, effect, contrasts.keys()),
                **fields | {"pairs": net_pairs},
            )
        )
    return found


def not_net(runs: Sequence[LoadedRun]) -> NotNet | None:
    """Say which gains of a group lack a control to be net of; None where none does."""
    gains, lacking = dict[str, None](), set()
    for effect in _effects(runs):
        paired = pair_by_seed(runs, *effect.gain)
        if not paired or net_of(paired, pair_by_seed(runs, *effect.control)):
            continue
        gains[f"{effect.gain[0]} over {effect.gain[1]}"] = None
        lacking |= {
            name
            for name in effect.control
            if not any(r.method == name and r.completed and r.seed in paired for r in runs)
        } or {*effect.control}
    if not gains:
        return None
    missing = method_order(lacking)
    gain = "gain" if len(gains) == 1 else "gains"
    return NotNet(
        missing,
        f"the {gain} of {_listed([*gains])} {_are([*gains])} not net of every control: "
        f"{_listed(missing)} {_are(missing)} missing (run with --with-controls)",
    )


def difference_sentence(name: str, reference: str, difference: MeanContrast) -> str:
    """Say in words what the paired difference of two methods tells."""
    n, mean = difference.seeds, formatting.signed(difference.mean)
    seeds = formatting.count(n, "seed")
    if n == 1:
        return f"{seeds} cannot tell {name} from {reference}: {mean}"
    if difference.interval is None:
        return (
            f"{seeds} cannot tell {name} from {reference}: {mean} on average, "
            f"higher on {difference.positive} of {n}"
        )
    interval = f"{mean} {formatting.interval(difference.interval)}"
    if not difference.excludes_zero:
        return f"{seeds} do not tell {name} from {reference}: {interval}"
    if difference.mean > 0:
        return f"{name} is better than {reference} on {difference.positive} of {seeds}, {interval}"
    return f"{name} is worse than {reference} on {difference.negative} of {seeds}, {interval}"


def net_sentence(
    effect: Effect, mode: str, gain: float, control_gain: float, net: MeanContrast
) -> str:
    """Say in one sentence what a gain is worth beside its control's, and no more than it tells.

    ``gain`` and ``control_gain`` are means over the seeds of the net effect.
    """
    name, reference = effect.gain
    verbs = ("gain", "lose") if effect.plural else ("gains", "loses")
    control = f"{effect.control_does} {_moves(control_gain, *verbs)}"
    against = "over" if gain >= 0 else "against"
    measured = f"At {mode} {name} {_moves(gain)} {against} {reference}; {control}: net "
    seeds = formatting.count(net.seeds, "seed")
    mean = formatting.signed(net.mean)
    if net.interval is None:
        average = f"{mean} on {seeds}" if net.seeds == 1 else f"{mean} on average on {seeds}"
        least = SEEDS_TO_TELL
        return f"{measured}{average}, which cannot tell (it takes {least} seeds)"
    interval = formatting.interval(net.interval)
    return f"{measured}{mean} {interval} on {seeds}, {_conclusion(effect, gain, net)}"


def _conclusion(effect: Effect, gain: float, net: MeanContrast) -> str:
    what, target, control = effect.what, effect.target, effect.control_is
    if not net.excludes_zero:
        return f"which does not tell the two apart: no gain beyond that of {control} is shown"
    other = f"{target} than for FP32" if target else f" than {control}"
    if net.mean > 0:
        nothing = "" if gain > 0 else ", although it gains nothing here"
        return f"so {what} does more{other}{nothing}"
    if not target:
        return f"so {what} does less{other}, which learn nothing"
    cure = ", and what it gains here is not a cure of quantization" if gain > 0 else ""
    return f"so {what} does less{other}{cure}"


def _collapses(runs: Iterable[LoadedRun], effect: Effect, seeds: Container[int]) -> str:
    """Name the collapses behind a mean, which says little of a method that collapses at times."""
    said = []
    for name in dict.fromkeys((*effect.gain, *effect.control)):
        counted = [r for r in runs if r.method == name and r.completed and r.seed in seeds]
        if collapsed := sum(run.outcome == "collapsed" for run in counted):
            said.append(f"{name} on {collapsed} of {len(counted)}")
    return f" (collapsed: {', '.join(said)})" if said else ""


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


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
