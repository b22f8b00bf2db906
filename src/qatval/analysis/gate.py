"""The stage gate `yolo10m_allowed`: may the expensive variant be trained.

It opens when, for each variant that yolo10m requires (presets/variants.toml), the method under test
has held: at least two ``ema+qc`` runs of different seeds, comparable with each other, every
completed one without collapse, in a comparison that covers all three methods. Only W4A16 counts:
other precisions and float controls are other experiments. A completed run that kept nothing worth
holding (its best value below 1 % of the FP32 checkpoint's, 0 or not finite), or whose value a check
of the measurement disputes, has not held either. Incomplete runs count neither for nor against the
gate unless asked to; then each one closes it. So does every run whose files are not those that it
left, whatever its summary says now: it may have been one that counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qatval.analysis.collapses import gets_through
from qatval.analysis.comparability import conditions, difference_text, differing_conditions, groups
from qatval.analysis.document import Gate, UnmetCriterion
from qatval.analysis.evidence import in_short
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting, presets
from qatval.quant.methods import method_names

REQUIRED_VARIANTS = presets.variant("yolo10m").requires
METHOD = "ema+qc"
MODE = "w4a16"
REQUIRED_SEEDS = 2


def decide(
    runs: Iterable[LoadedRun],
    required: Sequence[str] = REQUIRED_VARIANTS,
    *,
    count_incomplete: bool = False,
) -> Gate:
    """Decide whether the variant behind the gate may be trained.

    Args:
        runs: Of any variant, method and precision; what the gate does not ask about is ignored.
        required: Variants that must have held.
        count_incomplete: Whether an incomplete ``ema+qc`` run closes the gate.

    Returns:
        Its reasons are a line per variant where it is open and one that says how often so many runs
        let a method through that does collapse, else one per criterion not met.
    """
    runs = list(runs)
    counted = [run for run in runs if run.mode == MODE and (run.completed or count_incomplete)]
    judged = [_judge(name, [run for run in counted if run.variant == name]) for name in required]
    unmet = [
        UnmetCriterion(
            run.variant,
            f"run {run.run_id} is not what it left: {in_short(run.differences)}",
            [run.run_id],
        )
        for run in runs
        if run.differences
    ]
    unmet += [criterion for missing, _ in judged for criterion in missing]
    held = [line for _, evidence in judged for line in evidence]
    reasons = [f"{criterion.variant}: {criterion.reason}" for criterion in unmet]
    if held:
        held.append(
            _doubt(sum(run.method == METHOD and run.variant in required for run in counted))
        )
    return Gate(not unmet, reasons or held, unmet)


def _judge(variant: str, runs: Sequence[LoadedRun]) -> tuple[list[UnmetCriterion], list[str]]:
    """Return a variant's unmet criteria, or else the line that says on what runs it held."""
    tested = [run for run in runs if run.method == METHOD]
    unmet = [
        UnmetCriterion(variant, f"{METHOD} run {run.run_id} {_failure(run)}", [run.run_id])
        for run in tested
        if run.outcome != "stable"
    ]
    if len({run.seed for run in tested}) < REQUIRED_SEEDS:
        seeds = ", ".join(f"{run.run_id} of seed {run.seed}" for run in tested)
        has = f"has only {seeds}" if tested else "has none"
        reason = f"needs {REQUIRED_SEEDS} completed {METHOD} runs of different seeds, {has}"
        return [*unmet, UnmetCriterion(variant, reason, [run.run_id for run in tested])], []

    repeated = [group for _, group in groups(runs) if len(_seeds(group)) >= REQUIRED_SEEDS]
    if not repeated:
        return [*unmet, _not_comparable(variant, tested)], []

    compared = max(repeated, key=lambda group: len({run.method for run in group if run.completed}))
    covered = {run.method for run in compared if run.completed}
    if lacking := [name for name in method_names() if name not in covered]:
        ids = [run.run_id for run in compared if run.method == METHOD]
        reason = (
            f"no comparison covers all three methods: no completed {' and no '.join(lacking)} run "
            f"comparable with {', '.join(ids)}"
        )
        unmet.append(UnmetCriterion(variant, reason, ids))
    if unmet:
        return unmet, []
    seeds = ", ".join(str(seed) for seed in sorted(_seeds(compared)))
    first = compared[0].summary
    where = "/".join(filter(None, (first.dataset.name, first.training.profile)))
    return [], [
        f"{variant}: {len(tested)} {METHOD} runs without collapse, compared with the other methods "
        f"on seeds {seeds}{f' ({where})' if where else ''}"
    ]


def _doubt(runs: int) -> str:
    """Say how often so many runs let a method through that does collapse."""
    return (
        f"{runs} {METHOD} runs held in all: a method that collapses in one run of five gets "
        f"through in {formatting.rate(gets_through(runs))} of cases"
    )


def _seeds(runs: Iterable[LoadedRun]) -> set[int]:
    return {run.seed for run in runs if run.method == METHOD}


def _failure(run: LoadedRun) -> str:
    best, final = (
        "unknown" if value is None else f"{value:.3f}"
        for value in (run.summary.metrics.best_value, run.final)
    )
    names = ", ".join(check.name for check in run.summary.failed_checks or ())
    return {
        "collapsed": f"collapsed (final {final} of best {best})",
        "degenerate": f"kept nothing of the FP32 checkpoint (best value {best})",
        "disputed": f"failed a check of its measurement ({names})",
        "incomplete": "is incomplete",
    }[run.outcome]


def _not_comparable(variant: str, tested: Sequence[LoadedRun]) -> UnmetCriterion:
    one = tested[0]
    other = next(run for run in tested if run.seed != one.seed)
    differing = differing_conditions(conditions(one.recorded), conditions(other.recorded))
    fields = ", ".join(difference_text(difference) for difference in differing[:3])
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    runs = f"{METHOD} runs {one.run_id} and {other.run_id}"
    reason = f"{runs} are not comparable: they differ in {fields}{more}"
    return UnmetCriterion(variant, reason, [one.run_id, other.run_id])
