"""The comparison as a table for a terminal of 100 columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from textwrap import wrap

from qatval.analysis.costs import naming, setting
from qatval.analysis.document import Comparison, Group, MethodEntry, RunEntry, Spread
from qatval.core import formatting
from qatval.core.quantization import FLOAT_MODE
from qatval.core.stability import LEAST_SHARE_OF_FP32
from qatval.report.contrasts import LEGEND, collapse_lines, contrasts_of, look_line

WIDTH = 100
"""Columns of the terminal."""

_SEED_COLUMNS = 5
# no line breaks between a number and its unit, or within a p-value
_TOGETHER = re.compile(r"(?<=\d) (?=%)|(?<=\bp) (?=[<\d])|(?<=p <) ")


def terminal_table(comparison: Comparison) -> str:
    """Return the comparison as plain text: a table per group, what it tells, and the gate."""
    blocks = ["\n".join(_group(group, comparison)) for group in comparison.groups]
    if any(map(contrasts_of, comparison.groups)):
        blocks.append("\n".join(_wrapped(LEGEND)))
    gate = f"yolo10m gate: {'open' if comparison.gate.yolo10m_allowed else 'closed'}"
    reasons = map(formatting.terminal_line, comparison.gate.reasons)
    blocks.append("\n  ".join([gate, *reasons]))
    return "\n\n".join(blocks) + "\n"


def _group(group: Group, comparison: Comparison) -> Iterable[str]:
    runs = [run for run in comparison.runs if group.name in run.groups]
    images = group.conditions["dataset"]["val_images"]
    name = formatting.terminal_line(group.name)
    yield f"{name}: mAP 50-95 on {'all' if images is None else images} validation images"
    if group.not_comparable_with:
        differing = ", ".join(difference.field for difference in group.differs_in[:3])
        yield _cut(f"  not comparable with {group.not_comparable_with}: differs in {differing}")
    for line in filter(None, (look_line(group, comparison.margin), *collapse_lines(group))):
        yield from _wrapped(line)
    seeds = sorted({run.seed for run in runs})
    per_seed = seeds if len(seeds) <= _SEED_COLUMNS else []
    columns = [f"seed {seed}" for seed in per_seed]
    rows = [["method", *columns, "mean", "spread", "of FP32", "outcome"]]
    for method in group.methods:
        if method.role == "control" and ["controls"] not in rows:
            rows.append(["controls"])
        cells = [
            _of_seed([r for r in runs if r.method == method.method and r.seed == seed])
            for seed in per_seed
        ]
        rows.append([method.method, *cells, *method_numbers(method), outcome(method)])
    for _, label, measured in reference_values(group):
        unmeasured = [] if measured else ["", "", "not measured"]
        rows.append([label, *[""] * len(columns), formatting.value(mean_of(measured)), *unmeasured])
    yield from _aligned(rows)
    yield from _costs(group)
    for told in (group.against_post_training, *group.net_effects, group.not_net):
        if told is not None:
            yield from _wrapped(told.sentence)
    for difference in group.differences:
        yield from _wrapped(difference.sentence)
    for reference in group.references:
        yield from _wrapped(reference.sentence)


def reference_values(group: Group) -> list[tuple[str, str, Spread | None]]:
    """Return what was measured beside the methods, to read their values by.

    Returns:
        Name of the group's field, what it is called in reports, and its spread, None where it was
        not measured: the FP32 checkpoint; the untrained quantized model; the start of training
        where that is not the untrained model.
    """
    mode = group.conditions["quantization"]["mode"]
    measured = [("fp32_value", "FP32 checkpoint", group.fp32_value)]
    if mode != FLOAT_MODE:
        measured.append(("ptq_value", f"untrained {mode}", group.ptq_value))
        if group.start_value is not None and group.start_value != group.ptq_value:
            measured.append(("start_value", "start of training", group.start_value))
    return measured


def mean_of(spread: Spread | None) -> float | None:
    """Return the mean of repeated values, None where there are none."""
    return None if spread is None else spread.mean


def method_numbers(method: MethodEntry) -> list[str]:
    """Write what a method's runs come to: mean, spread, and share of FP32."""
    final = method.final_value
    spread = formatting.value(final.deviation if final else None)
    return [formatting.value(mean_of(final)), spread, share_of_fp32(method)]


def robust_numbers(method: MethodEntry) -> list[str]:
    """Write the median and the interquartile mean of a method's final values."""
    robust = method.robust
    return [
        formatting.value(robust.median if robust else None),
        formatting.value(robust.interquartile_mean if robust else None),
    ]


def share_of_fp32(method: MethodEntry) -> str:
    """Write the mean share of the FP32 checkpoint's value that a method's runs keep."""
    share = method.share_of_fp32
    return formatting.MISSING if share is None else f"{share.mean:.0%}"


def outcome(method: MethodEntry) -> str:
    """Say what became of a method's runs, e.g. ``"2 of 3 collapsed, 1 incomplete"``.

    Nothing is said to have held without saying so if it is worth less than half of FP32.
    """
    completed = method.completed
    bad = ("collapsed", "degenerate", "disputed")
    parts = [f"{n} of {completed} {what}" for what in bad if (n := getattr(method, what))]
    if completed and not parts:
        share, poor = method.share_of_fp32, ""
        if share is not None and share.min < LEAST_SHARE_OF_FP32:
            some = ", some" if share.max >= LEAST_SHARE_OF_FP32 else ""
            poor = f"{some} below half of FP32"
        parts = [f"{completed} of {completed} held{poor}"]
    if method.incomplete:
        parts.append(f"{method.incomplete} incomplete")
    return ", ".join(parts)


def _costs(group: Group) -> Iterable[str]:
    """Yield what exported files cost; what is not in a file is told by the other reports."""
    costs = group.costs
    files = [(it.method, it.file, it.runtimes) for it in costs.methods if it.runtimes]
    if costs.fp32 is None or not files:
        return
    files.append(("FP32 checkpoint", costs.fp32.file, costs.fp32.runtimes))
    minutes = {it.method: it.minutes for it in costs.methods}
    named = naming(it for _, _, runtimes in files for it in runtimes)
    rows = [["what it costs", "minutes", "size", "of FP32's", "latency", "memory", "runtime"]]
    for name, file, runtimes in files:
        took, share = minutes.get(name), file.share_of_fp32 if file else None
        cells = [
            name,
            "" if took is None else f"{took:.1f}",
            formatting.size(file.bytes) if file else formatting.MISSING,
            "" if share is None else formatting.percent(share),
        ]
        for it in runtimes:
            latency, memory = (
                formatting.milliseconds(it.median_ms),
                formatting.memory(it.resident_mb),
            )
            rows.append([*cells, latency, memory, named(it)])
            cells = [""] * len(cells)
    yield from _aligned(rows)
    settings = dict.fromkeys(setting(it) for _, _, runtimes in files for it in runtimes)
    for note in (f"latency is the median of one image; {'; '.join(settings)}", *costs.notes):
        yield from _wrapped(note)


def _of_seed(runs: Sequence[RunEntry]) -> str:
    completed = [run for run in runs if run.outcome != "incomplete"]
    if not completed:
        return "incomplete" if runs else formatting.MISSING
    last = completed[-1]
    mark = "" if last.outcome == "stable" else "!"
    return formatting.value(last.final_value) + mark


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield _cut("  " + "  ".join(cells).rstrip())


def _wrapped(sentence: str) -> Iterable[str]:
    together = _TOGETHER.sub("\N{NO-BREAK SPACE}", formatting.terminal_line(sentence))
    lines = wrap(together, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _cut(line: str) -> str:
    line = formatting.printable(line)
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
