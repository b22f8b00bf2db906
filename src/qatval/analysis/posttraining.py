"""Is a training needed at all: the best method against the best post-training quantization.

Both are the best of several by their mean over seeds, so both are a little better than they would
be on other seeds. Whatever pair is chosen among ``methods * references``, the smallest p-value of
them all is no larger than its own: times the number of pairs it is one that holds for the chosen
pair (Bonferroni), and as such it is in the comparison's family. The other pairs of the choice cost
the family nothing: no sentence is made of them. The mean and its interval stay those of the chosen
pair, a little too good, which the sentence says by naming of how many it is the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from qatval.analysis.claims import AgainstPostTraining
from qatval.analysis.collapses import seed_share
from qatval.analysis.costs import minutes_to_make
from qatval.analysis.effects import role
from qatval.analysis.family import Finding, Verdict
from qatval.analysis.measuring import Measured, measure
from qatval.analysis.pairing import pair_by_seed, scores_of
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting


def against_post_training(
    runs: Sequence[LoadedRun], mode: str, *, margin: float | None = None
) -> Finding[AgainstPostTraining] | None:
    """Return what training gains over post-training quantization among comparable runs.

    None where one of the two is missing, or there is no seed on which both held. ``mode`` names the
    quantization, ``margin`` is the one within which the two are tested to be alike.
    """
    scored = [run for run in runs if run.quantized and run.completed]
    known = [run for run in scored if run.outcome != "disputed"]
    trained = _best_first(r for r in known if r.trained and role(r.method) == "method")
    untrained = _best_first(r for r in known if not r.trained)
    if not trained or not untrained:
        return None
    method, reference = trained[0], untrained[0]
    contrasts = pair_by_seed(scored, method, reference)
    if not contrasts:
        return None
    measured = measure(scored, contrasts, scores_of(scored), (method, reference), margin)
    minutes, other_minutes = (minutes_to_make(scored, name) for name in (method, reference))
    best = _best(method, len(trained), "method")
    other = _best(reference, len(untrained), "post-training arm")
    cost = ""
    if minutes is not None and other_minutes is not None:
        cost = f"; it took {minutes:.1f} minutes a seed to make, that {other_minutes:.1f}"
    intro = f"Training or not, at {mode}: {best} against {other}"

    def say(verdict: Verdict | None) -> AgainstPostTraining:
        sentence = measured.ended(f"{intro}: {_told(measured, verdict)}", verdict)
        return AgainstPostTraining(
            method=method,
            reference=reference,
            methods=len(trained),
            references=len(untrained),
            minutes=minutes,
            reference_minutes=other_minutes,
            beats=seed_share(scored, method, reference),
            sentence=f"{sentence}{cost}",
            **measured.fields(verdict),
        )

    return Finding(measured.test(choices=len(trained) * len(untrained)), say)


def _best_first(runs: Iterable[LoadedRun]) -> list[str]:
    """Return the runs' methods, that of the highest mean first; a run that diverged has 0."""
    finals: dict[str, list[float]] = {}
    for run in runs:
        finals.setdefault(run.method, []).append(run.final or 0.0)
    return sorted(finals, key=lambda name: -math.fsum(finals[name]) / len(finals[name]))


def _told(measured: Measured, verdict: Verdict | None) -> str:
    said = f"{measured.value} on {formatting.count(measured.mean.seeds, 'seed')}"
    if measured.selective:
        return said
    if verdict is None:
        return f"{said}, which cannot tell"
    return said if verdict.tells else f"{said}, which does not tell the two apart"


def _best(name: str, among: int, what: str) -> str:
    return f"{name} (the only {what})" if among == 1 else f"{name} (the best of {among} {what}s)"
