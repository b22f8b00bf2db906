"""The comparison: runs grouped by what makes them comparable, repeated, paired, and the gate.

The document it builds is plain JSON, valid under ``schemas/comparison.schema.json``; every report
is a rendering of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from qatval import gate, numbers, statistics, thresholds
from qatval.comparability import Conditions, differences, groups
from qatval.config import PRIMARY_METRIC, method_names
from qatval.runs import LoadedRun, Unreadable
from qatval.statistics import ImageResamples, MeanDifference, Pair
from qatval.thresholds import Check, Thresholds

SCHEMA_VERSION = "1.0"

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
    group_of = {run.run_id: name for name, (_, members) in grouped.items() for run in members}
    judged = {run.run_id: thresholds.reference(run.summary, recorded) for run in unique}
    decision = gate.decide(unique, count_incomplete=count_incomplete)
    return {
        "schema_version": SCHEMA_VERSION,
        "primary_name": PRIMARY_METRIC,
        "runs": [_run(run, group_of[run.run_id], judged[run.run_id]) for run in unique],
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


def method_order(names: Iterable[str]) -> list[str]:
    """Sort method names: the contract's in its order, then any others by name."""
    known = method_names()
    return sorted(set(names), key=lambda n: (known.index(n) if n in known else len(known), n))


def sentence(method: str, reference: str, difference: MeanDifference) -> str:
    """Say in words what the paired difference of two methods tells."""
    n, mean = difference.seeds, numbers.signed(difference.mean)
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    if n == 1:
        return f"{seeds} cannot tell {method} from {reference}: {mean}"
    if difference.interval is None:
        return (
            f"{seeds} cannot tell {method} from {reference}: {mean} on average, "
            f"higher on {difference.positive} of {n}"
        )
    interval = f"{mean} {numbers.interval(difference.interval)}"
    if not difference.tells:
        return f"{seeds} do not tell {method} from {reference}: {interval}"
    if difference.mean > 0:
        return (
            f"{method} is better than {reference} on {difference.positive} of {seeds}, {interval}"
        )
    return f"{method} is worse than {reference} on {difference.negative} of {seeds}, {interval}"


def standings(judged: Iterable[tuple[LoadedRun, Check | None]]) -> list[dict[str, str]]:
    """Say how many completed runs agree with what is recorded for them, and name the others."""
    found: dict[str, list[LoadedRun]] = {}
    for run, check in judged:
        if check is not None:
            found.setdefault(check.result, []).append(run)
    completed = numbers.count(sum(map(len, found.values())), "completed run")
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


def pairs(runs: Sequence[LoadedRun], method: str, reference: str) -> list[Pair]:
    """Pair two methods' completed runs by seed.

    Runs that were scored on one training are paired with each other; where a seed has no such
    runs, each run of the one method is paired with each of the other. A seed counts once however
    many pairs it has.
    """
    ours, theirs = _by_seed(runs, method), _by_seed(runs, reference)
    found: list[Pair] = []
    for seed in sorted(ours.keys() & theirs.keys()):
        every = [_Match(*one, *other) for one in ours[seed] for other in theirs[seed]]
        shared = [match for match in every if match.shares_training]
        found.append(_pair(seed, shared or every, bool(shared)))
    return found


@dataclass(frozen=True)
class _Match:
    run: LoadedRun
    value: float
    reference: LoadedRun
    reference_value: float

    @property
    def shares_training(self) -> bool:
        trajectory = self.run.trajectory
        return trajectory is not None and trajectory == self.reference.trajectory


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


_Groups = Mapping[str, tuple[Conditions, list[LoadedRun]]]


def _groups(runs: Sequence[LoadedRun]) -> _Groups:
    named: dict[str, tuple[Conditions, list[LoadedRun]]] = {}
    for variant in sorted({run.variant for run in runs}):
        for wanted, members in groups(run for run in runs if run.variant == variant):
            profile = next((run.profile for run in members if run.profile), None)
            dataset = members[0].dataset or "unknown dataset"
            name = "/".join(filter(None, (variant, dataset, profile)))
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
                "conditions": dict(wanted),
                "not_comparable_with": None if compared_with == name else compared_with,
                "differs_in": [
                    {"field": d.field, "value": d.value, "other": d.other}
                    for d in differences(wanted, grouped[compared_with][0])
                ],
                "varying": _varying(members),
                "fp32_value": _spread(_values(members, "fp32_value")),
                "ptq_value": _spread(_values(members, "ptq_value")),
                "references": standings((run, judged[run.run_id]) for run in members),
                "methods": [_method(members, method) for method in order],
                "differences": [
                    document
                    for reference, method in combinations(order, 2)
                    if (document := _difference(members, method, reference)) is not None
                ],
            }
        )
    return documents


def _run(run: LoadedRun, group: str, reference: Check | None) -> dict[str, Any]:
    error = run.summary.get("error", {})
    stage = f" (in {error['stage']})" if error.get("stage") else ""
    return {
        "run_id": run.run_id,
        "root": str(run.root),
        "group": group,
        "variant": run.variant,
        "method": run.method,
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
        "before_qc_value": run.metric("before_qc_value"),
        "reference": reference and {"result": reference.result, "detail": reference.detail},
        "error": f"{error['message']}{stage}" if error else None,
    }


def _method(members: Sequence[LoadedRun], method: str) -> dict[str, Any]:
    runs = [run for run in members if run.method == method]
    outcomes = [run.outcome for run in runs if run.completed]
    return {
        "method": method,
        "runs": len(runs),
        "completed": len(outcomes),
        "collapsed": outcomes.count("collapsed"),
        "degenerate": outcomes.count("degenerate"),
        "incomplete": len(runs) - len(outcomes),
        "outcomes_agree": len(set(outcomes)) == 1 if len(outcomes) > 1 else None,
        "seeds": sorted({run.seed for run in runs if run.completed}),
        "final_value": _spread([v for r in runs if r.completed and (v := r.final) is not None]),
    }


def _difference(members: Sequence[LoadedRun], method: str, reference: str) -> dict[str, Any] | None:
    paired = pairs(members, method, reference)
    difference = statistics.mean_difference(paired)
    if difference is None:
        return None
    return {
        "method": method,
        "reference": reference,
        "mean": difference.mean,
        "interval": difference.interval and list(difference.interval),
        "level": statistics.LEVEL,
        "seeds": difference.seeds,
        "positive": difference.positive,
        "negative": difference.negative,
        "tells": difference.tells,
        "shared_training": all(pair.shared_training for pair in paired),
        "images_resampled": difference.images_resampled,
        "pairs": [
            {
                "seed": pair.seed,
                "difference": pair.difference,
                "shared_training": pair.shared_training,
                "image_error": pair.image_error,
            }
            for pair in paired
        ],
        "sentence": sentence(method, reference, difference),
    }


def _by_seed(runs: Iterable[LoadedRun], method: str) -> dict[int, list[tuple[LoadedRun, float]]]:
    found: dict[int, list[tuple[LoadedRun, float]]] = defaultdict(list)
    for run in runs:
        if run.method == method and run.completed and run.final is not None:
            found[run.seed].append((run, run.final))
    return found


def _pair(seed: int, matches: Sequence[_Match], shared: bool) -> Pair:
    difference = sum(match.value - match.reference_value for match in matches) / len(matches)
    ours = [_resamples(match.run) for match in matches]
    theirs = [_resamples(match.reference) for match in matches]
    known = [resamples for resamples in (*ours, *theirs) if resamples is not None]
    if len(known) < 2 * len(matches) or len({resamples.key for resamples in known}) > 1:
        return Pair(seed, difference, shared)
    half = len(matches)
    resampled = tuple(
        (sum(column[:half]) - sum(column[half:])) / half
        for column in zip(*(resamples.values for resamples in known), strict=True)
    )
    return Pair(seed, difference, shared, resampled, known[0].images)


def _resamples(run: LoadedRun) -> ImageResamples | None:
    recorded = run.section("metrics").get("bootstrap")
    # without an identity nobody knows that two runs resampled the same images
    if not isinstance(recorded, Mapping) or "identity" not in run.section("dataset"):
        return None
    values = tuple(recorded.get("values") or ())
    if len(values) < 2 or not all(isinstance(value, float | int) for value in values):
        return None
    images = int(recorded["images"])
    return ImageResamples((recorded["seed"], images, len(values)), images, values)


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
    summary = statistics.spread(values)
    if summary is None:
        return None
    return {
        "count": summary.count,
        "mean": summary.mean,
        "deviation": summary.deviation,
        "min": summary.low,
        "max": summary.high,
    }
