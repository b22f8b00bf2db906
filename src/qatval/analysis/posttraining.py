"""Is a training needed at all: the best method against the best post-training quantization.

Both are the best of several by their mean over seeds, so both are a little better than they would
be on other seeds, the one of more a little more so; the sentence says of how many each is the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from qatval.analysis import intervals
from qatval.analysis.effects import contrast_document, role
from qatval.analysis.pairing import pairs
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting

# The stages of a run that its model took; the others score it, or wait for other methods.
_STAGES = (
    "start of training",
    "training",
    "rounding",
    "BatchNorm statistics",
    "correction",
)


def against_post_training(runs: Sequence[LoadedRun], mode: str) -> dict[str, Any] | None:
    """Return what training gains over post-training quantization, None where one is missing.

    Args:
        runs: Comparable ones; of the float controls beside them nothing is taken.
        mode: Name of the quantization.
    """
    scored = [r for r in runs if r.quantized and r.completed and r.final is not None]
    trained = _by_mean(r for r in scored if r.trained and role(r.method) == "method")
    arms = _by_mean(r for r in scored if not r.trained)
    if not trained or not arms:
        return None
    method, arm = trained[0], arms[0]
    paired = pairs(scored, method, arm)
    mean = intervals.mean_contrast(paired)
    if mean is None:
        return None
    minutes = {name: _minutes([r for r in scored if r.method == name]) for name in (method, arm)}
    found = contrast_document(paired, mean) | {
        "method": method,
        "reference": arm,
        "methods": len(trained),
        "references": len(arms),
        "minutes": minutes[method],
        "reference_minutes": minutes[arm],
    }
    return found | {"sentence": _sentence(found, mode)}


def _by_mean(runs: Iterable[LoadedRun]) -> list[str]:
    finals: dict[str, list[float]] = {}
    for run in runs:
        assert run.final is not None
        finals.setdefault(run.method, []).append(run.final)
    return sorted(finals, key=lambda name: -math.fsum(finals[name]) / len(finals[name]))


def _minutes(runs: Sequence[LoadedRun]) -> float | None:
    """Return what the model took, mean over the runs; None where no run says."""
    taken = [
        math.fsum(timings.get(stage, 0.0) for stage in _STAGES) / 60
        for run in runs
        if (timings := run.section("timings"))
    ]
    return math.fsum(taken) / len(taken) if taken else None


def _sentence(found: dict[str, Any], mode: str) -> str:
    value = formatting.signed(found["mean"])
    seeds = formatting.count(found["seeds"], "seed")
    if found["interval"] is None:
        tells = f"{value} on {seeds}, which cannot tell (it takes {intervals.SEEDS_TO_TELL} seeds)"
    else:
        tells = f"{value} {formatting.interval(found['interval'])} on {seeds}"
        if not found["tells"]:
            tells += ", which does not tell the two apart"
    best = _best(found["method"], found["methods"], "method")
    other = _best(found["reference"], found["references"], "post-training arm")
    return f"Training or not, at {mode}: {best} against {other}: {tells}{_cost(found)}"


def _best(name: str, among: int, what: str) -> str:
    return f"{name} (the only {what})" if among == 1 else f"{name} (the best of {among} {what}s)"


def _cost(found: dict[str, Any]) -> str:
    minutes, other = found["minutes"], found["reference_minutes"]
    if minutes is None or other is None:
        return ""
    return f"; it took {minutes:.1f} minutes a seed to make, that {other:.1f}"
