"""What a method costs: time to make its model, the file that is delivered, what that takes to run.

Sizes and times are as runs recorded them and are compared with nothing but the FP32 checkpoint,
exported and measured in the same runs. What was measured unlike, in another runtime, with other
threads or on another processor, stands apart and is never averaged.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

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
_WEIGHTS = ", weights "
"""Between the precision of a convolution's input and another one of its weights."""

_INTEGER = re.compile(r"u?(?:int|i)?(\d+)")


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
    return Costs(found, reference, [*_of_minutes(found), *executions(_measured(found))])


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


def setting(it: RuntimeCost) -> str:
    """Name what a measurement depends on: runtime, threads, processor."""
    return f"{runtime_label(it.name, it.version, it.threads)}{f' on {it.cpu}' if it.cpu else ''}"


def naming(runtimes: Iterable[RuntimeCost]) -> Callable[[RuntimeCost], str]:
    """Return how to name measurements: by the runtime alone where that tells them apart."""
    settings = {(it.name, setting(it)) for it in runtimes}
    alone = len(settings) == len({name for name, _ in settings})
    return (lambda it: RUNTIME_LABELS[it.name]) if alone else setting


def executions(
    measured: Iterable[tuple[str, WeightStorage, RuntimeRecord | RuntimeCost]],
) -> Iterator[str]:
    """Yield in what precision runtimes computed, as they say it themselves, beside what is stored.

    What was computed alike is one sentence. Files in float have none: nothing of them can be
    misread.

    Args:
        measured: Whose file it is, how it has its quantized weights, and it in a runtime. Sentences
            that are not about everybody's name whose they are about.
    """
    about: dict[str, tuple[list[str], list[str]]] = {}
    for whose, stored, it in measured:
        if stored != "float":
            runtimes, files = about.setdefault(_computed(it.executed, stored), ([], []))
            runtimes.append(f"{RUNTIME_LABELS[it.name]} {it.version}")
            files.append(whose)
    everybody = {whose for _, files in about.values() for whose in files}
    for said, (runtimes, files) in about.items():
        of = "" if set(files) == everybody else f" ({', '.join(dict.fromkeys(files))})"
        yield f"{' and '.join(dict.fromkeys(runtimes))} {said}{of}"


def _computed(executed: Mapping[str, int], stored: WeightStorage) -> str:
    if not executed:
        return "did not say in what precision convolutions were computed"
    (most, count), *others = _most_first(executed)
    total = sum(executed.values())
    of = f"{count} of {total}" if others else f"all {total}"
    rest = "".join(f", {number} in {_spelled(precision)}" for precision, number in others)
    said = f"computed {of} convolutions in {_spelled(most)}{rest}"
    if any(_bits(precision) == _bits(stored) for precision in executed):
        return said
    return f"{said}: {stored} is how the file stores weights, not what is computed in"


def _bits(precision: str) -> str | None:
    """Return the bits of an integer, None for a float; of a convolution, those of its input.

    Weights that are unpacked within a kernel are not what it computes in.
    """
    integer = _INTEGER.fullmatch(precision.partition(_WEIGHTS)[0])
    return integer and integer[1]


def _spelled(precision: str) -> str:
    kind, _, weights = precision.partition(_WEIGHTS)
    return f"{kind} with {weights} weights" if weights else kind


def precisions(executed: Mapping[str, int]) -> str:
    """Write in what convolutions were computed, e.g. ``"80 int8, 14 float32"``, ``"float32"``."""
    if len(executed) == 1:
        return _spelled(next(iter(executed)))
    return ", ".join(f"{count} {_spelled(precision)}" for precision, count in _most_first(executed))


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


class _Setting(NamedTuple):
    """What has to be alike for two measurements of files to be of one thing."""

    weights: WeightStorage
    name: RuntimeName
    version: str
    threads: int
    cpu: str | None
    executed: tuple[tuple[str, int], ...]


def _runtimes(files: Iterable[tuple[LoadedRun, ExportedFile]]) -> list[RuntimeCost]:
    """Return what files take in the runtimes that they were measured in."""
    alike: dict[_Setting, list[RuntimeRecord]] = {}
    for run, file in files:
        cpu = (run.summary.environment or {}).get("cpu")
        for it in file.runtimes:
            executed = tuple(sorted(it.executed.items()))
            key = _Setting(file.weights, it.name, it.version, it.latency.threads, cpu, executed)
            alike.setdefault(key, []).append(it)
    return [_runtime_cost(*found) for found in alike.items()]


def _runtime_cost(setting: _Setting, measured: Sequence[RuntimeRecord]) -> RuntimeCost:
    latencies = [it.latency for it in measured]
    memory = [it.resident_mb for it in measured if it.resident_mb is not None]
    return RuntimeCost(
        name=setting.name,
        version=setting.version,
        threads=setting.threads,
        cpu=setting.cpu,
        weights=setting.weights,
        runs=len(measured),
        median_ms=statistics.median(latency.median_ms for latency in latencies),
        low_ms=min(latency.low_ms for latency in latencies),
        high_ms=max(latency.high_ms for latency in latencies),
        resident_mb=max(memory, default=None),
        executed=dict(setting.executed),
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


def _measured(costs: Sequence[MethodCost]) -> Iterator[tuple[str, WeightStorage, RuntimeCost]]:
    for cost in costs:
        for runtime in cost.runtimes:
            yield cost.method, runtime.weights, runtime
