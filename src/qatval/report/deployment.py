"""What every report says of exported files: what methods cost, and what became of a run's file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qatval.analysis.costs import executions, naming, precisions, runtime_label, setting
from qatval.analysis.document import DeliveredFile, Group, MethodEntry, RuntimeCost
from qatval.core import formatting
from qatval.core.deployment import RUNTIME_LABELS, Latency, RuntimeRecord
from qatval.core.summary import RunSummary
from qatval.report.terminal import mean_of, outcome, share_of_fp32

NUMERIC = frozenset(
    (
        *("mAP 50-95", "of FP32", "size", "of FP32's", "minutes", "difference"),
        *("latency", "memory"),
    )
)
"""The columns that hold numbers."""

_COSTS = (
    *("method", "mAP 50-95", "of FP32", "outcome", "file", "size", "of FP32's", "minutes"),
    *("runtime", "latency", "memory"),
)
_OF_METHOD = 8  # columns
_HOW = (
    "latency is that of one image a call, median and quartiles; memory the most that a process "
    "which loaded the file and ran it took, Python included"
)
_RUN = ("model", "runtime", "mAP 50-95", "difference", "latency", "memory", "computed in")


@dataclass(frozen=True)
class Table:
    """Rows of cells below the names of their columns.

    Attributes:
        how: How what is in it was measured; empty where nothing was.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    how: str


def cost_table(group: Group) -> Table | None:
    """Return what a group's methods cost, without columns that would be empty.

    A method has a row per runtime. None where nothing but the methods' values is known.
    """
    costs = group.costs
    if not any(it.file or it.minutes is not None for it in costs.methods):
        return None
    runtimes = [it for cost in costs.methods for it in cost.runtimes]
    runtimes += costs.fp32.runtimes if costs.fp32 else []
    named = naming(runtimes)
    rows: list[list[str]] = []
    for entry, cost in zip(group.methods, costs.methods, strict=True):
        minutes = formatting.MISSING if cost.minutes is None else f"{cost.minutes:.1f}"
        cells = [*_of_method(entry), *_of_file(cost.file), minutes]
        rows += _by_runtime(cells, cost.runtimes, named)
    if costs.fp32:
        value = formatting.value(mean_of(group.fp32_value))
        cells = ["FP32 checkpoint", value, "", "", *_of_file(costs.fp32.file), ""]
        rows += _by_runtime(cells, costs.fp32.runtimes, named)
    shown = [
        column
        for column in range(len(_COSTS))
        if any(row[column] not in ("", formatting.MISSING) for row in rows)
    ]
    settings = "; ".join(dict.fromkeys(map(setting, runtimes)))
    return Table(
        [_COSTS[column] for column in shown],
        [[row[column] for column in shown] for row in rows],
        f"{_HOW}; {settings}" if settings else "",
    )


def run_table(summary: RunSummary) -> Table | None:
    """Return how a run's exported file did in each runtime beside FP32's; None without one."""
    record, metrics = summary.deployment, summary.metrics
    if record is None:
        return None
    rows = [
        _in_runtime(name, runtime, value)
        for name, file, value in (
            ("exported", record.exported, metrics.final_value),
            ("FP32 checkpoint", record.fp32, metrics.fp32_value),
        )
        for runtime in file.runtimes
    ]
    return Table(_RUN, rows, f"{_HOW}; differences are to what the run reports")


def run_lines(summary: RunSummary) -> Iterator[str]:
    """Yield what a run's exported file is, how far it agrees with the run, how it is computed."""
    record = summary.deployment
    if record is None:
        return
    file, fp32 = record.exported, record.fp32
    sizes = [formatting.size(it.bytes) for it in (file, fp32)]
    where = f"file {file.file}" if file.file else "file, not kept"
    stored = "in float" if file.weights == "float" else f"as {file.weights}"
    yield (
        f"{where}: {sizes[0]}, {formatting.percent(file.bytes / fp32.bytes)} of the {sizes[1]} of "
        f"the FP32 checkpoint exported alike; weights stored {stored}, opset {record.opset}"
    )
    for it in file.runtimes:
        if (found := it.agreement) is not None:
            yield (
                f"detections in {RUNTIME_LABELS[it.name]} {it.version} against the run's own: "
                f"{found.unmatched:,} of {found.detections:,} without a counterpart, the others "
                f"differ by at most {found.box:.2g} pixels of a side and {found.score:.2g} of a "
                "score"
            )
    yield from executions(("", file.weights, it) for it in file.runtimes)


def _of_method(entry: MethodEntry) -> list[str]:
    value = formatting.value(mean_of(entry.final_value))
    return [entry.method, value, share_of_fp32(entry), outcome(entry)]


def _of_file(file: DeliveredFile | None) -> list[str]:
    if file is None:
        return [formatting.MISSING] * 3
    name = f"ONNX, {file.weights}" if file.weights else "ONNX"
    kind = {"onnx": name, "safetensors": "safetensors, not exported"}[file.kind]
    share = "" if file.share_of_fp32 is None else formatting.percent(file.share_of_fp32)
    return [kind, formatting.size(file.bytes), share]


def _by_runtime(
    cells: Sequence[str], runtimes: Sequence[RuntimeCost], named: Callable[[RuntimeCost], str]
) -> Iterator[list[str]]:
    """Yield a row per runtime, the first with the cells that are the same in all."""
    assert len(cells) == _OF_METHOD
    if not runtimes:
        yield [*cells, *[formatting.MISSING] * (len(_COSTS) - _OF_METHOD)]
    for number, it in enumerate(runtimes):
        own = cells if number == 0 else [""] * _OF_METHOD
        yield [*own, named(it), _latency(it), formatting.memory(it.resident_mb)]


def _in_runtime(name: str, it: RuntimeRecord, expected: float | None) -> list[str]:
    return [
        name,
        runtime_label(it.name, it.version, it.latency.threads),
        formatting.value(it.value),
        formatting.MISSING if expected is None else formatting.signed(it.value - expected),
        _latency(it.latency),
        formatting.memory(it.resident_mb),
        precisions(it.executed),
    ]


def _latency(it: Latency | RuntimeCost) -> str:
    quartiles = [formatting.milliseconds(ms).removesuffix(" ms") for ms in (it.low_ms, it.high_ms)]
    return f"{formatting.milliseconds(it.median_ms)} ({' to '.join(quartiles)})"
