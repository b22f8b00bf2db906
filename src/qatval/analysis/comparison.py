"""The comparison: runs grouped by what makes them comparable, repeated, paired, and the gate.

The document it builds is plain JSON, valid under ``schemas/comparison.schema.json``; every report
is a rendering of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qatval.analysis import effects, gate, intervals, posttraining, thresholds
from qatval.analysis.comparability import Group, differences, groups
from qatval.analysis.effects import method_order
from qatval.analysis.rules import Check
from qatval.analysis.runs import LoadedRun, Unreadable
from qatval.analysis.thresholds import Thresholds
from qatval.core import formatting
from qatval.core.quantization import brief, quantization_label
from qatval.core.stability import PRIMARY_METRIC

SCHEMA_VERSION = "1.1"

Comparison = dict[str, Any]

# What may differ between comparable runs, and a reader should know when it does.
_NOTABLE = (
    ("model", "checkpoint_sha256"),
    ("training", "device"),
    ("training", "amp"),
    ("training", "threads"),
    ("training", "overrides"),
    ("environment", "torch"),
    ("environment", "ultralytics"),
    ("environment", "brevitas"),
    ("git", "commit"),
)

# What a group's runs are to their references, the worst first, and how that is said.
_STANDINGS = {
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
) -> Comparison:
    """Compare runs.

    Args:
        runs: Runs of any kind; two copies of one run (equal ids) count once.
        unreadable: Summaries that could not be read; they are listed, not compared.
        count_incomplete: Whether incomplete runs count in the gate.
        recorded: What is known of scenarios, by default the shipped threshold file.
    """
    recorded = recorded or thresholds.load()
    unique, warnings = _unique(runs)
    warnings += [
        f"{run.run_id}: {contradiction}" for run in unique if (contradiction := run.contradiction)
    ]
    grouped = _groups(unique)
    groups_of: dict[str, list[str]] = {}
    for name, (_, members) in grouped.items():
        for run in members:
            groups_of.setdefault(run.run_id, []).append(name)
    judged = {run.run_id: thresholds.reference(run.summary, recorded) for run in unique}
    decision = gate.decide(unique, count_incomplete=count_incomplete)
    return {
        "schema_version": SCHEMA_VERSION,
        "primary_name": PRIMARY_METRIC,
        "runs": [_run(run, groups_of[run.run_id], judged[run.run_id]) for run in unique],
        "groups": _group_documents(grouped, judged),
        "gate": {
            gate.GATE: decision.open,
            "reasons": list(decision.reasons),
            "unmet": [
                {"variant": unmet.variant, "reason": unmet.reason, "runs": list(unmet.runs)}
                for unmet in decision.unmet
            ],
        },
        "unreadable": [{"path": str(item.path), "reason": item.reason} for item in unreadable],
        "warnings": warnings,
    }


def standings(judged: Iterable[tuple[LoadedRun, Check | None]]) -> list[dict[str, str]]:
    """Say how many completed runs agree with what is recorded for them, and name the others."""
    found: dict[str, list[LoadedRun]] = {}
    for run, check in judged:
        if check is not None:
            found.setdefault(check.result, []).append(run)
    completed = formatting.count(sum(map(len, found.values())), "completed run")
    said = []
    for result, words in _STANDINGS.items():
        if runs := found.get(result):
            sentence = words.format(runs=f"{len(runs)} of {completed}")
            if result in ("failed", "waived"):
                names = [f"{run.method} seed {run.seed}" for run in runs[:_NAMED]]
                more = [f"{len(runs) - _NAMED} more"] if len(runs) > _NAMED else []
                sentence += f": {', '.join(names + more)}"
            said.append({"result": result, "sentence": sentence})
    return said


def _unique(runs: Iterable[LoadedRun]) -> tuple[list[LoadedRun], list[str]]:
    kept: dict[str, LoadedRun] = {}
    warnings = []
    for run in runs:
        first = kept.setdefault(run.run_id, run)
        if first is not run:
            warnings.append(f"{run.root}: same run as {first.root} ({run.run_id}), counted once")
    order = method_order(run.method for run in kept.values())
    return sorted(
        kept.values(), key=lambda run: (run.variant, order.index(run.method), run.seed, run.run_id)
    ), warnings


_Groups = Mapping[str, Group]


def _groups(runs: Sequence[LoadedRun]) -> _Groups:
    named: dict[str, Group] = {}
    for variant in sorted({run.variant for run in runs}):
        for wanted, members in groups(run for run in runs if run.variant == variant):
            profile = next((run.profile for run in members if run.profile), None)
            dataset = members[0].dataset or "unknown dataset"
            name = "/".join(filter(None, (variant, dataset, profile)))
            name = " ".join(filter(None, (name, brief(quantization_label(wanted["quantization"])))))
            same = sum(other == name or other.startswith(f"{name} (") for other in named)
            named[f"{name} ({same + 1})" if same else name] = (wanted, members)
    return named


def _group_documents(grouped: _Groups, judged: Mapping[str, Check | None]) -> list[dict[str, Any]]:
    documents = []
    largest: dict[str, str] = {}
    for name, (wanted, members) in grouped.items():
        compared_with = largest.setdefault(members[0].variant, name)
        order = method_order(run.method for run in members)
        documents.append(
            {
                "name": name,
                "variant": members[0].variant,
                "dataset": members[0].dataset,
                "profile": next((run.profile for run in members if run.profile), None),
                "precision": quantization_label(wanted["quantization"]),
                "conditions": dict(wanted),
                "not_comparable_with": None if compared_with == name else compared_with,
                "differs_in": [
                    {"field": d.field, "value": d.value, "other": d.other}
                    for d in differences(wanted, grouped[compared_with][0])
                ],
                "varying": _varying(members),
                "fp32_value": _spread(_values(members, "fp32_value")),
                "ptq_value": _spread(_values(members, "ptq_value")),
                "start_value": _spread(
                    _values([r for r in members if r.quantized and r.trained], "start_value")
                ),
                "references": standings((run, judged[run.run_id]) for run in members),
                "methods": [_method(members, method) for method in order],
                "net_effects": effects.net_effects(members, wanted["quantization"]["mode"]),
                "not_net": effects.not_net(members),
                "against_post_training": posttraining.against_post_training(
                    members, wanted["quantization"]["mode"]
                ),
                "differences": effects.differences(members),
            }
        )
    return documents


def _run(run: LoadedRun, groups: Sequence[str], reference: Check | None) -> dict[str, Any]:
    error = run.summary.get("error", {})
    stage = f" (in {error['stage']})" if error.get("stage") else ""
    return {
        "run_id": run.run_id,
        "root": str(run.root),
        "group": groups[0],
        "groups": list(groups),
        "variant": run.variant,
        "method": run.method,
        "role": effects.role(run.method),
        "mode": run.mode,
        "seed": run.seed,
        "profile": run.profile,
        "trajectory": run.trajectory,
        "created_at": run.summary["created_at"],
        "status": run.summary["status"],
        "outcome": run.outcome,
        "best_value": run.best,
        "final_value": run.final,
        "final_over_best_ratio": run.final / run.best
        if run.best and run.final is not None
        else None,
        "fp32_value": run.metric("fp32_value"),
        "ptq_value": run.metric("ptq_value"),
        "start_value": run.metric("start_value"),
        "share_of_fp32": run.kept,
        "failed_checks": list(run.summary.get("failed_checks", [])),
        "before_qc_value": run.metric("before_qc_value"),
        "before_bn_value": run.metric("before_bn_value"),
        "reference": reference and {"result": reference.result, "detail": reference.detail},
        "error": f"{error['message']}{stage}" if error else None,
    }


def _method(members: Sequence[LoadedRun], method: str) -> dict[str, Any]:
    runs = [run for run in members if run.method == method]
    outcomes = [run.outcome for run in runs if run.completed]
    return {
        "method": method,
        "role": effects.role(method),
        "runs": len(runs),
        "completed": len(outcomes),
        "collapsed": outcomes.count("collapsed"),
        "degenerate": outcomes.count("degenerate"),
        "disputed": outcomes.count("disputed"),
        "incomplete": len(runs) - len(outcomes),
        "outcomes_agree": len(set(outcomes)) == 1 if len(outcomes) > 1 else None,
        "seeds": sorted({run.seed for run in runs if run.completed}),
        "final_value": _spread([v for r in runs if r.completed and (v := r.final) is not None]),
        "share_of_fp32": _spread([v for r in runs if r.completed and (v := r.kept) is not None]),
        "oscillating": _spread(_measured(runs, "oscillation", "oscillating")),
        "batchnorm_drift": _spread(_measured(runs, "batchnorm", "kl_mean")),
    }


def _measured(runs: Iterable[LoadedRun], section: str, name: str) -> list[float]:
    return [
        value for r in runs if r.completed and (value := r.section(section).get(name)) is not None
    ]


def _varying(members: Sequence[LoadedRun]) -> list[dict[str, Any]]:
    found = []
    for section, name in _NOTABLE:
        values = {str(run.section(section).get(name)) for run in members}
        if len(values) > 1:
            found.append({"field": f"{section}.{name}", "values": sorted(values)})
    return found


def _values(members: Iterable[LoadedRun], metric: str) -> list[float]:
    return [value for run in members if (value := run.metric(metric)) is not None]


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    summary = intervals.spread(values)
    if summary is None:
        return None
    return {
        "count": summary.count,
        "mean": summary.mean,
        "deviation": summary.deviation,
        "min": summary.low,
        "max": summary.high,
    }
