"""Is a training needed at all: the best method against the best post-training quantization.

Both are the best of several by their mean over seeds, so both are a little better than they would
be on other seeds, the one of more a little more so; the sentence says of how many each is the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from qatval.analysis.document import AgainstPostTraining
from qatval.analysis.effects import measured, role
from qatval.analysis.intervals import SEEDS_TO_TELL, MeanContrast
from qatval.analysis.pairing import pair_by_seed, scores_of
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.quant.methods import making_stages

# The stages of a run that its model took; the others score it, or wait for other methods.
_STAGES = {"start of training", "training", *making_stages()}


def against_post_training(runs: Sequence[LoadedRun], mode: str) -> AgainstPostTraining | None:
    """Return what training gains over post-training quantization among comparable runs.

    None where one of the two is missing, or no seed has both. ``mode`` names the quantization.
    """
    scored = [r for r in runs if r.quantized and r.completed and r.final is not None]
    trained = _best_first(r for r in scored if r.trained and role(r.method) == "method")
    untrained = _best_first(r for r in scored if not r.trained)
    if not trained or not untrained:
        return None
    method, reference = trained[0], untrained[0]
    contrasts = pair_by_seed(scored, method, reference)
    if not contrasts:
        return None
    difference, fields = measured(contrasts, scores_of(scored))
    minutes, other_minutes = (_minutes(scored, name) for name in (method, reference))
    best = _best(method, len(trained), "method")
    other = _best(reference, len(untrained), "post-training arm")
    return AgainstPostTraining(
        method=method,
        reference=reference,
        methods=len(trained),
        references=len(untrained),
        minutes=minutes,
        reference_minutes=other_minutes,
        sentence=f"Training or not, at {mode}: {best} against {other}: {_measured(difference)}"
        + _cost(minutes, other_minutes),
        **fields,
    )


def _best_first(runs: Iterable[LoadedRun]) -> list[str]:
    """Return the runs' methods, that of the highest mean final value first."""
    finals: dict[str, list[float]] = {}
    for run in runs:
        assert run.final is not None
        finals.setdefault(run.method, []).append(run.final)
    return sorted(finals, key=lambda name: -math.fsum(finals[name]) / len(finals[name]))


def _minutes(runs: Iterable[LoadedRun], method: str) -> float | None:
    """Return what a method's model took, mean over the runs; None where no run says."""
    taken = [
        math.fsum(timings.get(stage, 0.0) for stage in _STAGES) / 60
        for run in runs
        if run.method == method and (timings := run.summary.timings)
    ]
    return math.fsum(taken) / len(taken) if taken else None


def _measured(difference: MeanContrast) -> str:
    value = formatting.signed(difference.mean)
    seeds = formatting.count(difference.seeds, "seed")
    if difference.interval is None:
        return f"{value} on {seeds}, which cannot tell (it takes {SEEDS_TO_TELL} seeds)"
    undecided = "" if difference.excludes_zero else ", which does not tell the two apart"
    return f"{value} {formatting.interval(difference.interval)} on {seeds}{undecided}"


def _best(name: str, among: int, what: str) -> str:
    return f"{name} (the only {what})" if among == 1 else f"{name} (the best of {among} {what}s)"


def _cost(minutes: float | None, other: float | None) -> str:
    if minutes is None or other is None:
        return ""
    return f"; it took {minutes:.1f} minutes a seed to make, that {other:.1f}"
