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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

from qatval.analysis import intervals
from qatval.analysis.intervals import Contrast, MeanContrast
from qatval.analysis.pairing import net, pairs
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.errors import UsageError
from qatval.quant.methods import (
    BASELINE,
    in_float,
    method,
    method_names,
    part_names,
    parts,
    reestimated,
    without,
)

Role = Literal["method", "control"]
Kind = Literal["averaging", "teacher", "correction", "correction-in-float"]


def role(name: str) -> Role:
    """Return whether a method is under test or there to be compared with; unknown ones are tested.

    Controls train without quantization, train nothing, or re-estimate statistics in QC's place.
    """
    try:
        meant = method(name)
    except UsageError:
        return "method"
    tested = meant.quantized and meant.recipe is not None and meant.statistics != "reestimated"
    return "method" if tested else "control"


def method_order(names: Iterable[str]) -> list[str]:
    """Sort method names: the contract's in its order, others by their parts, controls last."""
    compared, known = method_names(), part_names()

    def rank(name: str) -> tuple[Any, ...]:
        if name in compared:
            return (0, compared.index(name))
        found = _parts(name)
        control = role(name) == "control"
        if found is None:
            return (1, control, 1, name)
        # training comes first in a name, so ptq would precede the controls that train
        untrained = method(name).recipe is None if control else False
        return (1, control, 0, untrained, tuple(known.index(part) for part in found))

    return sorted(set(names), key=rank)


def differences(runs: Sequence[LoadedRun]) -> list[dict[str, Any]]:
    """Return the paired differences worth a sentence, of the comparable runs of a group.

    The contract's methods among each other, each method against the baseline, and each method or
    control against what it extends by one part.
    """
    quantized = {run.method: run.quantized for run in runs}
    found = []
    for reference, name in permutations(method_order(quantized), 2):
        if quantized[reference] == quantized[name] and _worth_comparing(name, reference):
            paired = pairs(runs, name, reference)
            if (mean := intervals.mean_contrast(paired)) is not None:
                found.append(
                    {
                        "method": name,
                        "reference": reference,
                        **contrast_document(paired, mean),
                        "sentence": difference_sentence(name, reference, mean),
                    }
                )
    return found


@dataclass(frozen=True)
class Effect:
    """A gain and what it has to exceed, each as a method and its reference."""

    kind: Kind
    gain: tuple[str, str]
    control: tuple[str, str]


def effects_of(name: str) -> list[Effect]:
    """Return what a method's gain has to exceed, nothing for one whose last part has no control."""
    found = _parts(name)
    if not found or role(name) == "control":
        return []
    if found[-1] == "ema":
        control = in_float(name)
        return [
            Effect("averaging", (name, without(name, "ema")), (control, without(control, "ema")))
        ]
    if found[-1] == "distill":
        return [Effect("teacher", (name, without(name, "distill")), (in_float(name), "fp32"))]
    if found[-1] == "qc":
        reference, control = without(name, "qc"), in_float(name)
        return [
            Effect("correction", (name, reference), (reestimated(name), reference)),
            Effect("correction-in-float", (name, reference), (control, without(control, "qc"))),
        ]
    return []


def net_effects(runs: Sequence[LoadedRun], mode: str) -> list[dict[str, Any]]:
    """Return what methods gain net of their controls, of the comparable runs of a group.

    Args:
        runs: Of one quantization, with the float controls beside it.
        mode: Name of the quantization.
    """
    found = []
    for meant in _effects(runs):
        measured = net(runs, meant.gain, meant.control)
        mean = intervals.mean_contrast(measured.nets)
        gain = intervals.mean_contrast(measured.gains)
        control_gain = intervals.mean_contrast(measured.control_gains)
        if mean is None or gain is None or control_gain is None:
            continue
        document = contrast_document(measured.nets, mean)
        each = zip(document["pairs"], measured.gains, measured.control_gains, strict=True)
        found.append(
            {
                "kind": meant.kind,
                "method": meant.gain[0],
                "reference": meant.gain[1],
                "control": meant.control[0],
                "control_reference": meant.control[1],
                "gain": gain.mean,
                "control_gain": control_gain.mean,
                **document,
                "pairs": [
                    {**pair, "gain": one.value, "control_gain": other.value}
                    for pair, one, other in each
                ],
                "sentence": net_sentence(meant, mode, gain.mean, control_gain.mean, mean)
                + _collapses(runs, meant, {contrast.seed for contrast in measured.nets}),
            }
        )
    return found


def not_net(runs: Sequence[LoadedRun]) -> dict[str, Any] | None:
    """Say which gains of a group lack a control to be net of; None where none does."""
    gains, lacking = dict[str, None](), set()
    for meant in _effects(runs):
        seeds = {pair.seed for pair in pairs(runs, *meant.gain)}
        if not seeds or net(runs, meant.gain, meant.control).nets:
            continue
        gains[f"{meant.gain[0]} over {meant.gain[1]}"] = None
        lacking |= {
            name
            for name in meant.control
            if not any(r.method == name and r.completed and r.seed in seeds for r in runs)
        } or {*meant.control}
    if not gains:
        return None
    missing = method_order(lacking)
    gain = "gain" if len(gains) == 1 else "gains"
    return {
        "missing": missing,
        "sentence": f"the {gain} of {_listed([*gains])} {_are([*gains])} not net of every control: "
        f"{_listed(missing)} {_are(missing)} missing (run with --with-controls)",
    }


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
    if not difference.tells:
        return f"{seeds} do not tell {name} from {reference}: {interval}"
    if difference.mean > 0:
        return f"{name} is better than {reference} on {difference.positive} of {seeds}, {interval}"
    return f"{name} is worse than {reference} on {difference.negative} of {seeds}, {interval}"


def net_sentence(
    meant: Effect, mode: str, gain: float, control_gain: float, net: MeanContrast
) -> str:
    """Say in one sentence what a gain is worth beside its control's, and no more than it tells.

    Args:
        meant: What was compared with what.
        mode: Name of the quantization.
        gain, control_gain: Means over the seeds of the net effect.
        net: The net effect.
    """
    name, reference = meant.gain
    if meant.kind == "averaging":
        control = f"in FP32 under the same schedule averaging {_moves(control_gain)}"
    elif meant.kind == "teacher":
        control = f"taught by itself FP32 {_moves(control_gain)}"
    elif meant.kind == "correction-in-float":
        control = f"in FP32 under the same schedule the same correction {_moves(control_gain)}"
    else:
        control = (
            f"fresh BatchNorm statistics in place of QC {_moves(control_gain, 'gain', 'lose')}"
        )
    against = "over" if gain >= 0 else "against"
    measured = f"At {mode} {name} {_moves(gain)} {against} {reference}; {control}: net "
    seeds = formatting.count(net.seeds, "seed")
    mean = formatting.signed(net.mean)
    if net.interval is None:
        average = f"{mean} on {seeds}" if net.seeds == 1 else f"{mean} on average on {seeds}"
        least = intervals.SEEDS_TO_TELL
        return f"{measured}{average}, which cannot tell (it takes {least} seeds)"
    interval = formatting.interval(net.interval)
    return f"{measured}{mean} {interval} on {seeds}, {_told(meant, gain, net)}"


def _told(meant: Effect, gain: float, net: MeanContrast) -> str:
    what, target, control = {
        "averaging": ("averaging", " for the quantized training", "averaging by itself"),
        "teacher": ("the teacher", " for the quantized model", "FP32 taught by itself"),
        "correction-in-float": ("QC", " for the quantized model", "correcting an FP32 model"),
        "correction": ("QC", "", "fresh statistics"),
    }[meant.kind]
    if not net.tells:
        return f"which does not tell the two apart: no gain beyond that of {control} is shown"
    other = f"{target} than for FP32" if target else f" than {control}"
    if net.mean > 0:
        nothing = "" if gain > 0 else ", although it gains nothing here"
        return f"so {what} does more{other}{nothing}"
    if not target:
        return f"so {what} does less{other}, which learn nothing"
    cure = ", and what it gains here is not a cure of quantization" if gain > 0 else ""
    return f"so {what} does less{other}{cure}"


def _collapses(runs: Iterable[LoadedRun], meant: Effect, seeds: set[int]) -> str:
    """Name the collapses behind a mean, which says little of a method that collapses at times."""
    said = []
    for name in dict.fromkeys((*meant.gain, *meant.control)):
        counted = [r for r in runs if r.method == name and r.completed and r.seed in seeds]
        if collapsed := sum(run.outcome == "collapsed" for run in counted):
            said.append(f"{name} on {collapsed} of {len(counted)}")
    return f" (collapsed: {', '.join(said)})" if said else ""


def _moves(value: float, up: str = "gains", down: str = "loses") -> str:
    return (
        f"{up} {formatting.signed(value)}"
        if value >= 0
        else f"{down} {formatting.signed(-value)[1:]}"
    )


def _effects(runs: Iterable[LoadedRun]) -> list[Effect]:
    names = method_order({run.method for run in runs if run.quantized})
    return [meant for name in names for meant in effects_of(name)]


def _worth_comparing(name: str, reference: str) -> bool:
    compared = method_names()
    if name in compared and reference in compared:
        return compared.index(name) > compared.index(reference)
    if reference == BASELINE and role(name) == "method":
        return True
    ours, theirs = _parts(name), _parts(reference)
    if ours is None or theirs is None:
        return False
    alike = not theirs or ("ptq" in ours) == ("ptq" in theirs)
    return alike and len(ours) == len(theirs) + 1 and set(theirs) < set(ours)


def _parts(name: str) -> tuple[str, ...] | None:
    """Return the parts of a method, None for one that is not known here."""
    try:
        return parts(name)
    except UsageError:
        return None


def contrast_document(contrasts: Sequence[Contrast], mean: MeanContrast) -> dict[str, Any]:
    """Return a mean contrast and what it is the mean of, as the comparison has it."""
    return {
        "mean": mean.mean,
        "interval": mean.interval and list(mean.interval),
        "level": intervals.LEVEL,
        "seeds": mean.seeds,
        "positive": mean.positive,
        "negative": mean.negative,
        "tells": mean.tells,
        "shared_training": all(contrast.shared_training for contrast in contrasts),
        "images_resampled": mean.images_resampled,
        "pairs": [
            {
                "seed": contrast.seed,
                "difference": contrast.value,
                "shared_training": contrast.shared_training,
                "image_error": contrast.image_error,
            }
            for contrast in contrasts
        ],
    }


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
