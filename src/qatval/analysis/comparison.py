"""Compare runs: group them by what makes them comparable, repeat, pair, and decide the gate.

`qatval.analysis.document` says what a comparison holds; every report is a rendering of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from qatval.analysis import effects, family, gate, thresholds
from qatval.analysis.autopsies import causes
from qatval.analysis.claims import (
    AgainstPostTraining,
    CollapseDifference,
    Look,
    NetEffect,
    PairedDifference,
)
from qatval.analysis.collapses import collapse_difference, collapse_rates
from qatval.analysis.comparability import RunGroup, across_text, differing_conditions, groups
from qatval.analysis.costs import costs_of
from qatval.analysis.document import (
    Comparison,
    Group,
    MethodEntry,
    NotRead,
    Primary,
    Reference,
    ReferenceCount,
    RunEntry,
    Varying,
)
from qatval.analysis.effects import method_order
from qatval.analysis.evidence import in_short
from qatval.analysis.falls import remarkable
from qatval.analysis.family import Finding, Verdict
from qatval.analysis.intervals import spread
from qatval.analysis.posttraining import against_post_training
from qatval.analysis.repetition import distinct
from qatval.analysis.robust import robust
from qatval.analysis.rules import Check, Result
from qatval.analysis.runs import LoadedRun, Unreadable
from qatval.analysis.sequential import look_at
from qatval.analysis.thresholds import Thresholds
from qatval.core import formatting
from qatval.core.quantization import brief, quantization_label
from qatval.core.stability import PRIMARY_METRIC, share

SCHEMA_VERSION = "1.2"

# What may differ between comparable runs, and a reader should know when it does.
_NOTABLE = (
    *(("training", name) for name in ("device", "threads")),
    *(("environment", name) for name in ("cpu", "gpu", "torch", "ultralytics", "brevitas")),
    ("git", "commit"),
)

# How a group's runs compare with their references, the worst first, and how that is said.
_REFERENCE_SENTENCES: Mapping[Result, str] = {
    "failed": "reference not met by {runs}",
    "waived": "reference not met by {runs}, but waived",
    "passed": "reference met within its tolerance by {runs}",
    "not judged": "no reference recorded for {runs}: judged by the rules alone",
}
_NAMED = 6


def compare(
    runs: Iterable[LoadedRun],
    unreadable: Iterable[Unreadable] = (),
    *,
    count_incomplete: bool = False,
    recorded: Thresholds | None = None,
    across: Collection[str] = (),
    margin: float | None = None,
) -> Comparison:
    """Compare runs.

    What the groups tell is found first and said afterwards, when all of it has been judged
    together (`qatval.analysis.family`).

    Args:
        runs: Runs of any kind; one and the same run or training counts once.
        unreadable: Summaries that could not be read; they are listed, not compared, and close the
            gate.
        count_incomplete: Whether incomplete runs count in the gate.
        recorded: What is known of scenarios, by default the shipped threshold file.
        across: Conditions of `conditions.ACROSS` that may differ among runs that are compared;
            each sentence across them says so. The gate never looks across them.
        margin: Within which methods are tested to be alike, in mAP; None for what the runs' plans
            name, if they do.
    """
    recorded = recorded or thresholds.load()
    runs = list(runs)
    unreadable = list(unreadable)
    unique, repetitions = distinct(runs)
    unique = _ordered(unique)
    warnings = [str(repetition) for repetition in repetitions]
    warnings += [f"{run.run_id}: {said}" for run in unique if (said := run.contradiction)]
    warnings += [
        f"{run.run_id} is not what the run left: {in_short(run.differences)}; see 'qatval verify "
        f"{run.root}'"
        for run in unique
        if run.differences
    ]
    warnings += _warned_of(unique)
    grouped = _named_groups(unique, across)
    groups_of: dict[str, list[str]] = {}
    for name, group in grouped.items():
        for run in group.runs:
            groups_of.setdefault(run.run_id, []).append(name)
    checks = {run.run_id: thresholds.reference(run.summary, recorded) for run in unique}
    largest: dict[str, str] = {}
    for name, group in grouped.items():
        largest.setdefault(group.runs[0].variant, name)
    margin = margin or _planned_margin(unique)
    found = {name: findings(group, margin) for name, group in grouped.items()}
    verdicts = family.judge(finding for each in found.values() for finding in each.all())
    return Comparison(
        schema_version=SCHEMA_VERSION,
        primary_name=PRIMARY_METRIC,
        margin=margin,
        runs=[_run_entry(run, groups_of[run.run_id], checks[run.run_id]) for run in unique],
        groups=[
            _saying_across(
                _group_entry(
                    name, grouped, largest[group.runs[0].variant], checks, found[name], verdicts
                ),
                group.runs,
                across,
            )
            for name, group in grouped.items()
        ],
        gate=gate.decide(runs, unreadable=unreadable, count_incomplete=count_incomplete),
        unreadable=[NotRead(str(item.path), item.reason) for item in unreadable],
        warnings=warnings,
    )


@dataclass(frozen=True)
class Findings:
    """What a group's runs tell, before it is judged."""

    primary: Primary | None
    look: Look | None
    collapse_differences: list[Finding[CollapseDifference]]
    differences: list[Finding[PairedDifference]]
    net_effects: list[Finding[NetEffect]]
    against_post_training: Finding[AgainstPostTraining] | None

    def all(self) -> Iterator[Finding[object]]:
        """Yield every one of them."""
        yield from self.collapse_differences
        yield from self.differences
        yield from self.net_effects
        if self.against_post_training is not None:
            yield self.against_post_training


def findings(group: RunGroup, margin: float | None = None) -> Findings:
    """Return what a group's runs tell; ``margin`` is that of `compare`."""
    runs, mode = group.runs, group.conditions["quantization"]["mode"]
    primary = _declared(runs)
    contrast = None if primary is None else (primary.method, primary.reference)
    pairs = effects.worth_comparing(runs)
    if contrast is not None and contrast not in pairs:
        pairs = [contrast, *(pair for pair in pairs if pair != contrast[::-1])]
    look = look_at(runs, contrast)
    collapses = (collapse_difference(runs, *p, primary=p == contrast) for p in pairs)
    against = against_post_training(runs, mode, margin=margin)
    return Findings(
        primary,
        look,
        [finding.at(look) for finding in collapses if finding is not None],
        [
            finding.at(look)
            for finding in effects.paired_differences(runs, pairs, primary=contrast, margin=margin)
        ],
        [finding.at(look) for finding in effects.net_effects(runs, mode, margin=margin)],
        None if against is None else against.at(look),
    )


def _declared(runs: Iterable[LoadedRun]) -> Primary | None:
    """Return the primary contrast of runs, None where they declared none or several."""
    declared = {(it.method, it.reference) for run in runs if (it := run.summary.primary)}
    return Primary(*declared.pop()) if len(declared) == 1 else None


def _planned_margin(runs: Iterable[LoadedRun]) -> float | None:
    """Return the margin that the plans of runs name, None where none does or several."""
    margins = {run.summary.series.margin for run in runs if run.summary.series is not None}
    return margins.pop() if len(margins) == 1 else None


def reference_counts(judged: Iterable[tuple[LoadedRun, Check | None]]) -> list[ReferenceCount]:
    """Count the completed runs that agree with what is recorded for them, and name the others.

    A run comes with its check against the reference, None where it is incomplete.
    """
    found: dict[str, list[LoadedRun]] = {}
    for run, check in judged:
        if check is not None:
            found.setdefault(check.result, []).append(run)
    completed = formatting.count(sum(map(len, found.values())), "completed run")
    said = []
    for result, words in _REFERENCE_SENTENCES.items():
        if runs := found.get(result):
            sentence = words.format(runs=f"{len(runs)} of {completed}")
            if result in ("failed", "waived"):
                names = [f"{run.method} seed {run.seed}" for run in runs[:_NAMED]]
                more = [f"{len(runs) - _NAMED} more"] if len(runs) > _NAMED else []
                sentence += f": {', '.join(names + more)}"
            said.append(ReferenceCount(result, sentence))
    return said


def _ordered(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Return runs in the comparison's order."""
    order = method_order(run.method for run in runs)
    return sorted(
        runs, key=lambda run: (run.variant, order.index(run.method), run.seed, run.run_id)
    )


def _warned_of(runs: Iterable[LoadedRun]) -> Iterator[str]:
    """Yield what runs were warned of, each warning once, with the runs it is about."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.summary.warnings:
            found.setdefault(warning, []).append(run.run_id)
    for warning, ids in found.items():
        yield f"{ids[0]}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: {warning}"


def _named_groups(runs: Sequence[LoadedRun], across: Collection[str]) -> Mapping[str, RunGroup]:
    named: dict[str, RunGroup] = {}
    for variant in sorted({run.variant for run in runs}):
        for group in groups((run for run in runs if run.variant == variant), across):
            dataset = group.runs[0].summary.dataset.name or "unknown dataset"
            name = "/".join(filter(None, (variant, dataset, _profile(group.runs))))
            precision = quantization_label(group.conditions["quantization"])
            name = " ".join(filter(None, (name, brief(precision))))
            same = sum(other == name or other.startswith(f"{name} (") for other in named)
            named[f"{name} ({same + 1})" if same else name] = group
    return named


def _profile(runs: Iterable[LoadedRun]) -> str | None:
    return next((p for run in runs if (p := run.summary.training.profile)), None)


def _group_entry(
    name: str,
    grouped: Mapping[str, RunGroup],
    largest: str,
    checks: Mapping[str, Check | None],
    found: Findings,
    verdicts: Mapping[Finding[object], Verdict],
) -> Group:
    """Return a group as the comparison has it; ``largest`` is its variant's largest group."""
    conditions, runs = grouped[name]
    methods = method_order(run.method for run in runs)
    entries = [_method_entry(runs, method) for method in methods]
    against = found.against_post_training
    trained = [run for run in runs if run.quantized and run.trained]
    return Group(
        name=name,
        variant=runs[0].variant,
        dataset=runs[0].summary.dataset.name,
        profile=_profile(runs),
        precision=quantization_label(conditions["quantization"]),
        primary=found.primary,
        look=found.look,
        conditions=conditions,
        not_comparable_with=None if largest == name else largest,
        differs_in=differing_conditions(conditions, grouped[largest].conditions),
        varying=_varying(runs),
        fp32_value=spread(_known(run.summary.metrics.fp32_value for run in runs)),
        ptq_value=spread(_known(run.summary.metrics.value("ptq_value") for run in runs)),
        start_value=spread(_known(run.summary.metrics.value("start_value") for run in trained)),
        references=reference_counts((run, checks[run.run_id]) for run in runs),
        collapse_rates=collapse_rates(runs, methods),
        collapse_differences=[it.say(verdicts.get(it)) for it in found.collapse_differences],
        methods=entries,
        costs=costs_of(runs, entries),
        net_effects=[it.say(verdicts.get(it)) for it in found.net_effects],
        not_net=effects.not_net(runs),
        against_post_training=None if against is None else against.say(verdicts.get(against)),
        differences=[it.say(verdicts.get(it)) for it in found.differences],
    )


_CLAIMS = ("collapse_differences", "differences", "net_effects")
_NAMES = ("method", "reference", "control", "control_reference")


def _saying_across(group: Group, runs: Sequence[LoadedRun], across: Collection[str]) -> Group:
    """Return a group each of whose claims says across what it is made."""

    def saying(claim: Any) -> Any:
        names = {getattr(claim, name, None) for name in _NAMES}
        note = across_text((run for run in runs if run.completed and run.method in names), across)
        return msgspec.structs.replace(claim, sentence=claim.sentence + note) if note else claim

    one = group.against_post_training
    return msgspec.structs.replace(
        group,
        **{name: [saying(claim) for claim in getattr(group, name)] for name in _CLAIMS},
        against_post_training=one and saying(one),
    )


def _course(run: LoadedRun) -> str | None:
    """Say what became of a run epoch by epoch and why, None where it simply held."""
    said = (remarkable(run.course, run.summary.method.afterwards), causes(run.summary.autopsies))
    return "; ".join(filter(None, said)) or None


def _run_entry(run: LoadedRun, groups: list[str], check: Check | None) -> RunEntry:
    summary, metrics, error = run.summary, run.summary.metrics, run.summary.error
    stage = f" (in {error.stage})" if error and error.stage else ""
    return RunEntry(
        run_id=run.run_id,
        root=str(run.root),
        group=groups[0],
        groups=groups,
        variant=run.variant,
        method=run.method,
        role=effects.role(run.method),
        mode=run.mode,
        seed=run.seed,
        profile=summary.training.profile,
        trajectory=run.trajectory,
        created_at=summary.created_at,
        status=summary.status,
        outcome=run.outcome,
        best_value=metrics.best_value,
        final_value=run.final,
        final_over_best_ratio=share(run.final, metrics.best_value),
        fp32_value=metrics.fp32_value,
        ptq_value=metrics.value("ptq_value"),
        start_value=metrics.value("start_value"),
        share_of_fp32=run.kept,
        failed_checks=list(summary.failed_checks or ()),
        before_qc_value=metrics.before_qc_value,
        before_bn_value=metrics.before_bn_value,
        course=_course(run),
        reference=None if check is None else Reference(check.result, check.detail),
        error=f"{error.message}{stage}" if error else None,
    )


def _method_entry(members: Sequence[LoadedRun], method: str) -> MethodEntry:
    runs = [run for run in members if run.method == method]
    completed = [run for run in runs if run.completed]
    outcomes = [run.outcome for run in completed]
    oscillations = [o for run in completed if (o := run.summary.oscillation)]
    drifts = [b for run in completed if (b := run.summary.batchnorm)]
    return MethodEntry(
        method=method,
        role=effects.role(method),
        runs=len(runs),
        completed=len(outcomes),
        collapsed=outcomes.count("collapsed"),
        degenerate=outcomes.count("degenerate"),
        disputed=outcomes.count("disputed"),
        incomplete=len(runs) - len(outcomes),
        outcomes_agree=len(set(outcomes)) == 1 if len(outcomes) > 1 else None,
        seeds=sorted({run.seed for run in completed}),
        final_value=spread(_known(run.final for run in completed)),
        robust=robust([run.final for run in completed]),
        share_of_fp32=spread(_known(run.kept for run in completed)),
        oscillating=spread([oscillation.oscillating for oscillation in oscillations]),
        batchnorm_drift=spread([drift.kl_mean for drift in drifts]),
    )


def _varying(runs: Sequence[LoadedRun]) -> list[Varying]:
    values = {
        f"{section}.{name}": {str((run.recorded.get(section) or {}).get(name)) for run in runs}
        for section, name in _NOTABLE
    }
    return [Varying(field, sorted(found)) for field, found in values.items() if len(found) > 1]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
