"""The stage gate `yolo10m_allowed`: may the expensive variant be trained.

It opens when, for each variant that yolo10m requires (presets/variants.toml), the method under test
has held: at least two ``ema+qc`` runs of different seeds, comparable with each other, every
completed one without collapse, in a comparison that covers all three methods on two common seeds.
All of it is of one dataset, which is that of the run behind the gate where that is known. Only
W4A16 counts: other precisions and float controls are other experiments. A completed run that kept
nothing worth holding (its best value below 1 % of the FP32 checkpoint's, 0 or not finite), or whose
value a check of the measurement disputes, has not held either.

Some evidence opens nothing, though a collapse among it closes the gate: what repeats another run
(`qatval.analysis.repetition`), what was trained on drawn images, which say nothing of photographs,
unless they are what is to be trained on, and what was trained for one epoch, which shows that all
works and not that anything holds.

Incomplete runs count neither for nor against the gate unless asked to; then each one closes it. So
does every run whose files are not those that it left, whatever its summary says now, and every
summary that cannot be read or believed: it may have been one that counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qatval.analysis.collapses import gets_through
from qatval.analysis.comparability import difference_text, differing_conditions, groups
from qatval.analysis.conditions import conditions
from qatval.analysis.document import Gate, UnmetCriterion
from qatval.analysis.evidence import in_short
from qatval.analysis.repetition import distinct
from qatval.analysis.runs import LoadedRun, Unreadable, collect
from qatval.core import formatting, presets
from qatval.quant.methods import method_names

REQUIRED_VARIANTS = presets.variant("yolo10m").requires
METHOD = "ema+qc"
MODE = "w4a16"
REQUIRED_SEEDS = 2
REQUIRED_EPOCHS = 2

Aside = Sequence[tuple[LoadedRun, str]]
"""Runs that open nothing, each with the reason."""


def decide(
    runs: Iterable[LoadedRun],
    required: Sequence[str] = REQUIRED_VARIANTS,
    *,
    unreadable: Iterable[Unreadable] = (),
    annotations: Mapping[str, str] | None = None,
    count_incomplete: bool = False,
) -> Gate:
    """Decide whether the variant behind the gate may be trained.

    Args:
        runs: Of any variant, method and precision; what the gate does not ask about is ignored.
        required: Variants that must have held.
        unreadable: What could not be read beside them; each closes the gate.
        annotations: By split the SHA-256 of the annotation file that is to be trained on, None
            where nobody says.
        count_incomplete: Whether an incomplete ``ema+qc`` run closes the gate.

    Returns:
        Its reasons are a line per variant where it is open and one that says how often so many runs
        let a method through that does collapse, else one per criterion not met.
    """
    unique, repetitions = distinct(runs)
    unmet = [
        UnmetCriterion(
            run.variant,
            f"run {run.run_id} is not what it left: {in_short(run.differences)}",
            [run.run_id],
        )
        for run in (*unique, *(repetition.run for repetition in repetitions))
        if run.differences
    ]
    aside = [(it.run, f"{it.what} as {it.first.run_id}") for it in repetitions]
    counted = [run for run in unique if run.mode == MODE and (run.completed or count_incomplete)]
    opening = []
    for run in counted:
        if why := _opens_nothing(run, annotations):
            aside.append((run, why))
        elif run.completed:
            opening.append(run)
    tested = [run for run in counted if run.method == METHOD and run.variant in required]
    unmet += [
        UnmetCriterion(run.variant, f"{METHOD} run {run.run_id} {_failure(run)}", [run.run_id])
        for run in tested
        if run.outcome != "stable"
    ]
    offered = [run for run in opening if run.method == METHOD and run.variant in required]
    datasets = dict.fromkeys(map(_data, offered)) or {"": None}
    missing, held = min(
        (_judge_all(required, opening, dataset, aside) for dataset in datasets),
        key=lambda judged: len(judged[0]),
    )
    unmet += missing
    if held:
        held.append(
            _doubt(sum(run.method == METHOD and run.variant in required for run in opening))
        )
    unmet += [UnmetCriterion("", f"evidence cannot be used: {it.reason}", []) for it in unreadable]
    reasons = [": ".join(filter(None, (it.variant, it.reason))) for it in unmet]
    return Gate(not unmet, reasons or held, unmet)


def decide_from(
    roots: Iterable[Path],
    required: Sequence[str] = REQUIRED_VARIANTS,
    *,
    annotations: Mapping[str, str] | None = None,
) -> Gate:
    """Decide as `decide` does by all that lies below some folders, each file held to its digest."""
    runs, unreadable = collect(roots, verify=True)
    return decide(runs, required, unreadable=unreadable, annotations=annotations)


def _opens_nothing(run: LoadedRun, annotations: Mapping[str, str] | None) -> str:
    """Say why a run counts for nothing though it may count against the gate, "" where it counts."""
    dataset, training = run.summary.dataset, run.summary.training
    identity = dataset.identity or {}
    names = (dataset.name, identity.get("dataset"))
    recorded = identity.get("annotations")
    if annotations is not None and recorded is not None:
        if recorded != annotations:
            return "of another dataset than what is to be trained on"
    elif any(str(name).split("-")[0] == presets.EMBEDDED for name in names):
        return "of drawn images"
    history = run.summary.history
    epochs = training.epochs if not history else min(training.epochs, len(history))
    if run.trained and epochs < REQUIRED_EPOCHS:
        return "of one epoch"
    return ""


def _data(run: LoadedRun) -> str:
    """Return what tells datasets from each other, "" for one that is not recorded."""
    dataset = run.summary.dataset
    annotations = (dataset.identity or {}).get("annotations")
    return json.dumps(annotations, sort_keys=True) if annotations else dataset.name or ""


def _judge_all(
    required: Iterable[str], opening: Sequence[LoadedRun], dataset: str, aside: Aside
) -> tuple[list[UnmetCriterion], list[str]]:
    """Judge each variant on one dataset: what is not met, and on what runs the others held."""
    here = [run for run in opening if _data(run) == dataset]
    aside = [*aside, *((run, "of another dataset") for run in opening if _data(run) != dataset)]
    unmet, held = [], []
    for variant in required:
        found = _judge(
            variant,
            [run for run in here if run.variant == variant],
            _told(it for it in aside if (it[0].variant, it[0].method) == (variant, METHOD)),
        )
        if isinstance(found, UnmetCriterion):
            unmet.append(found)
        else:
            held.append(found)
    return unmet, held


def _told(aside: Iterable[tuple[LoadedRun, str]]) -> list[str]:
    """Say which runs open nothing, an item for each reason."""
    by_reason: dict[str, list[str]] = {}
    for run, why in aside:
        by_reason.setdefault(why, []).append(run.run_id)
    return [f"{in_short(ids)} ({why})" for why, ids in by_reason.items()]


def _judge(variant: str, runs: Sequence[LoadedRun], aside: Sequence[str]) -> UnmetCriterion | str:
    """Return what a variant's runs lack, or else the line that says on what runs it held."""
    tested = [run for run in runs if run.method == METHOD]
    ids = [run.run_id for run in tested]
    if len({run.seed for run in tested}) < REQUIRED_SEEDS:
        seeds = ", ".join(f"{run.run_id} of seed {run.seed}" for run in tested)
        has = f"has only {seeds}" if tested else "has none"
        reason = f"needs {REQUIRED_SEEDS} completed {METHOD} runs of different seeds, {has}"
        if aside:
            reason += f"; not counted: {'; '.join(aside)}"
        return UnmetCriterion(variant, reason, ids)
    repeated = [g for _, g in groups(runs) if len(_seeds(g, METHOD)) >= REQUIRED_SEEDS]
    if not repeated:
        return _not_comparable(variant, tested)
    compared = max(repeated, key=lambda g: (len(_common_seeds(g)), len({r.method for r in g})))
    ids = [run.run_id for run in compared if run.method == METHOD]
    if lacking := [name for name in method_names() if not _seeds(compared, name)]:
        reason = (
            f"no comparison covers all three methods: no completed {' and no '.join(lacking)} run "
            f"comparable with {', '.join(ids)}"
        )
        return UnmetCriterion(variant, reason, ids)
    common = _common_seeds(compared)
    if len(common) < REQUIRED_SEEDS:
        of = [f"{name} of {_listed(_seeds(compared, name))}" for name in method_names()]
        reason = f"needs all three methods on {REQUIRED_SEEDS} common seeds, has {', '.join(of)}"
        return UnmetCriterion(variant, reason, ids)
    first = compared[0].summary
    where = "/".join(filter(None, (first.dataset.name, first.training.profile)))
    return (
        f"{variant}: {len(tested)} {METHOD} runs without collapse, compared with the other methods "
        f"on seeds {_listed(common)}{f' ({where})' if where else ''}"
    )


def _doubt(runs: int) -> str:
    """Say how often so many runs let a method through that does collapse."""
    return (
        f"{runs} {METHOD} runs held in all: a method that collapses in one run of five gets "
        f"through in {formatting.rate(gets_through(runs))} of cases"
    )


def _seeds(runs: Iterable[LoadedRun], method: str) -> set[int]:
    return {run.seed for run in runs if run.method == method and run.completed}


def _common_seeds(runs: Sequence[LoadedRun]) -> set[int]:
    return set[int].intersection(*(_seeds(runs, name) for name in method_names()))


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))


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
