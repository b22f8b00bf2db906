"""What a method costs: time to make its model, the file that is delivered, what that takes to run.

Sizes and times are as runs recorded them and are compared with nothing but the FP32 checkpoint,
exported and measured in the same runs. What was measured unlike, in another runtime, with other
threads or on another processor, stands apart and is never averaged.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qatval.analysis.document import (
    Costs,
    DeliveredFile,
    Fp32Cost,
    MethodCost,
    MethodEntry,
    RuntimeCost,
)
from qatval.analysis.effects import method_order
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.deployment import (
    RUNTIME_LABELS,
    ExportedFile,
    RuntimeName,
    RuntimeRecord,
    WeightStorage,
)
from qatval.quant.methods import making_stages

# The stages of a run that its model took; the others score it, or wait for other methods.
_STAGES = {"start of training", "training", *making_stages()}
_FOUR_BITS = re.compile(r"[iu](nt)?4")


def costs_of(runs: Sequence[LoadedRun], methods: Sequence[MethodEntry]) -> Costs:
    """Return what each method costs.

    Args:
        runs: Of one group.
        methods: Their methods, in the order of the table.
    """
    completed = [run for run in runs if run.completed]
    found = [_method_cost(completed, entry) for entry in methods]
    fp32 = [(run, it.fp32) for run in completed if (it := run.summary.deployment)]
    reference = Fp32Cost(_exported_file([f for _, f in fp32]), _runtimes(fp32)) if fp32 else None
    return Costs(found, reference, [*_of_minutes(found), *_of_execution(found)])


def minutes_to_make(runs: Iterable[LoadedRun], method: str) -> float | None:
    """Return what a method's model took, mean over the runs; None where no run says.

    A training that several methods share counts in full for each.
    """
    taken = [
        math.fsum(timings.get(stage, 0.0) for stage in _STAGES) / 60
        for run in runs
        if run.method == method and (timings := run.summary.timings)
    ]
    return math.fsum(taken) / len(taken) if taken else None


def runtime_label(name: RuntimeName, version: str, threads: int) -> str:
    """Name a runtime with what its times depend on."""
    return f"{RUNTIME_LABELS[name]} {version}, {formatting.count(threads, 'thread')}"


def execution(
    name: RuntimeName, version: str, executed: Mapping[str, int], stored: WeightStorage | None
) -> str:
    """Say in what a runtime computed, beside what a file stores, as the runtime itself says it.

    Args:
        name, version: Of the runtime.
        executed: Precision -> how many convolutions.
        stored: How the file has its quantized weights, None for files of several kinds.
    """
    runtime, convolutions = f"{RUNTIME_LABELS[name]} {version}", sum(executed.values())
    if not convolutions:
        return f"{runtime} does not say in what precision it computed"
    if len(executed) == 1:
        said = f"{runtime} computed all {convolutions} convolutions in {next(iter(executed))}"
    else:
        parts = [f"{count} in {precision}" for precision, count in _most_first(executed)]
        said = f"{runtime} computed of {convolutions} convolutions {', '.join(parts)}"
    if stored != "int4" or any(_FOUR_BITS.fullmatch(precision) for precision in executed):
        return said
    return f"{said}: int4 is how the file stores weights here, not what is computed in"


def precisions(executed: Mapping[str, int]) -> str:
    """Write in what convolutions were computed, e.g. ``"80 int8, 14 float32"``, ``"float32"``."""
    if len(executed) == 1:
        return next(iter(executed))
    return ", ".join(f"{count} {precision}" for precision, count in _most_first(executed))


def _most_first(executed: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(executed.items(), key=lambda item: -item[1])


def _method_cost(completed: Sequence[LoadedRun], entry: MethodEntry) -> MethodCost:
    own = [run for run in completed if run.method == entry.method]
    trainings = {run.trajectory for run in own if run.trajectory}
    sharing = {run.method for run in completed if run.trajectory in trainings} - {entry.method}
    return MethodCost(
        method=entry.method,
        runs=entry.completed,
        collapsed=entry.collapsed + entry.degenerate,
        final_value=entry.final_value,
        share_of_fp32=entry.share_of_fp32,
        minutes=minutes_to_make(own, entry.method),
        training_shared_with=method_order(sharing),
        file=_delivered(own),
        runtimes=_runtimes((run, it.exported) for run in own if (it := run.summary.deployment)),
    )


def _delivered(runs: Sequence[LoadedRun]) -> DeliveredFile | None:
    """Return the file that runs deliver: the exported one, the weights where nothing was."""
    deployments = [it for run in runs if (it := run.summary.deployment)]
    if deployments:
        shares = [it.exported.bytes / it.fp32.bytes for it in deployments]
        return _exported_file([it.exported for it in deployments], statistics.mean(shares))
    sizes = [
        digest.bytes
        for run in runs
        if (digest := (run.summary.files or {}).get(run.summary.artifacts.weights or ""))
    ]
    return DeliveredFile("safetensors", None, _mean(sizes), None) if sizes else None


def _exported_file(files: Sequence[ExportedFile], share: float | None = None) -> DeliveredFile:
    stored = {file.weights for file in files}
    weights = stored.pop() if len(stored) == 1 else None
    return DeliveredFile("onnx", weights, _mean([file.bytes for file in files]), share)


def _mean(sizes: Sequence[int]) -> int:
    return round(statistics.mean(sizes))


def _runtimes(files: Iterable[tuple[LoadedRun, ExportedFile]]) -> list[RuntimeCost]:
    """Return what files take in the runtimes that they were measured in."""
    alike: dict[tuple[object, ...], list[tuple[str | None, RuntimeRecord]]] = {}
    for run, file in files:
        cpu = (run.summary.environment or {}).get("cpu")
        for it in file.runtimes:
            executed = tuple(sorted(it.executed.items()))
            key = (it.name, it.version, it.latency.threads, cpu, executed)
            alike.setdefault(key, []).append((cpu, it))
    return [_runtime_cost(*found) for found in alike.values()]


def _runtime_cost(*measured: tuple[str | None, RuntimeRecord]) -> RuntimeCost:
    (cpu, first), latencies = measured[0], [it.latency for _, it in measured]
    return RuntimeCost(
        name=first.name,
        version=first.version,
        threads=first.latency.threads,
        cpu=cpu,
        runs=len(measured),
        median_ms=statistics.median(latency.median_ms for latency in latencies),
        low_ms=min(latency.low_ms for latency in latencies),
        high_ms=max(latency.high_ms for latency in latencies),
        resident_mb=max(it.resident_mb for _, it in measured),
        executed=first.executed,
    )


def _of_minutes(costs: Sequence[MethodCost]) -> Iterator[str]:
    if all(cost.minutes is None for cost in costs):
        return
    shared = {frozenset((it.method, *it.training_shared_with)) for it in costs} - {
        frozenset({it.method}) for it in costs
    }
    said = "minutes are what one model takes to make, mean over runs, scores left out"
    if shared:
        names = "; ".join(sorted(", ".join(method_order(methods)) for methods in shared))
        said += (
            "; a training that methods share was run once and counts in full for each of them: "
            f"{names}"
        )
    yield said


def _of_execution(costs: Sequence[MethodCost]) -> Iterator[str]:
    """Yield what runtimes say of the precisions they computed in, for each kind of file."""
    said: dict[str, list[str]] = {}
    for cost in costs:
        for it in cost.runtimes:
            stored = cost.file.weights if cost.file else None
            sentence = execution(it.name, it.version, it.executed, stored)
            methods = said.setdefault(sentence, [])
            if cost.method not in methods:
                methods.append(cost.method)
    exported = {cost.method for cost in costs if cost.runtimes}
    for sentence, methods in said.items():
        yield sentence if set(methods) == exported else f"{sentence} ({', '.join(methods)})"
