"""The charts of a group of comparable runs: final values, net effects, paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qatval.analysis.claims import (
    NetEffect,
    NetPair,
    Pair,
    PairedDifference,
)
from qatval.analysis.document import Group, RunEntry
from qatval.core import formatting
from qatval.report.charts import Level, Row, dot_chart
from qatval.report.drawing import Chart, Style
from qatval.report.terminal import reference_values

Contrast = NetEffect | PairedDifference

KINDS = {"fp32_value": "fp32", "ptq_value": "untrained", "start_value": "start"}
"""How a level is drawn, by the metric that it shows."""


def value_charts(
    group: Group, entries: Sequence[RunEntry], styles: Mapping[str, Style]
) -> Sequence[Chart]:
    """Return the charts of a group's values (`entries` are its runs) and differences, if any."""
    found = (_values(group, entries, styles), _differences(group.differences, styles))
    return [chart for chart in found if chart is not None]


def _values(group: Group, entries: Sequence[RunEntry], styles: Mapping[str, Style]) -> Chart | None:
    rows, table = [], []
    for method in group.methods:
        if method.final_value is None:
            continue
        name, dots = method.method, []
        for entry in entries:
            if entry.method == name and entry.final_value is not None:
                held, value = entry.outcome == "stable", formatting.value(entry.final_value)
                title = f"{name}, seed {entry.seed}: {value}{'' if held else f', {entry.outcome}'}"
                dots.append((entry.final_value, title, not held, entry.trajectory or entry.run_id))
                table.append([name, str(entry.seed), value])
        rows.append(Row(name, styles[name], dots, method.final_value.mean))
    return dot_chart(
        "Final mAP 50-95 of every run",
        "A dot per run, a bar at each method's mean; thin lines join runs of one training. "
        "Controls are hollow. Crossed-out dots did not hold.",
        rows,
        x_label="mAP 50-95",
        levels=[
            Level(label, measured.mean, KINDS[key])
            for key, label, measured in reference_values(group)
            if measured is not None
        ],
        header=["method", "seed", "final mAP 50-95"],
        table=table,
    )


def net_chart(effects: Sequence[NetEffect], styles: Mapping[str, Style]) -> Chart | None:
    """Return the chart of a group's net effects, None if it has none."""
    return dot_chart(
        "Net effects",
        "What a method gains less what its control gains: the same averaging or correction in "
        "FP32, or fresh BatchNorm statistics in place of QC. Left of the line the control gains "
        "more.",
        [_row(effect, styles) for effect in effects],
        x_label="net gain in mAP 50-95",
        levels=[Level("control gains as much", 0.0, "zero")],
        header=["gain", "seed", "gain", "control's gain", "net ± standard error over images"],
        table=[
            *(numbers for effect in effects for numbers in _of_seeds(effect)),
            *(numbers for effect in effects for numbers in _over_seeds(effect)),
        ],
    )


def _differences(
    differences: Sequence[PairedDifference], styles: Mapping[str, Style]
) -> Chart | None:
    return dot_chart(
        "Paired differences",
        "A dot per seed, a bar across at the mean, a bar along for the 95 % interval over seeds "
        "and validation images, of each alone. Right of the line is better.",
        [_row(difference, styles) for difference in differences],
        x_label="difference in mAP 50-95",
        levels=[Level("no difference", 0.0, "zero")],
        header=["difference", "seed", "mAP 50-95 ± standard error over images"],
        table=[line for d in differences for line in (*_of_seeds(d), *_over_seeds(d))],
    )


def _row(contrast: Contrast, styles: Mapping[str, Style]) -> Row:
    label = _label(contrast)
    dots = [
        (it.difference, f"{label}, seed {it.seed}: {formatting.signed(it.difference)}", False, None)
        for it in contrast.pairs
    ]
    name = net_name(contrast) if isinstance(contrast, NetEffect) else label
    return Row(name, styles[contrast.method], dots, contrast.mean, contrast.interval)


def net_name(effect: NetEffect) -> str:
    """Return what a net effect is called for short, e.g. ``"ema net of fp32+ema"``."""
    return f"{effect.method} net of {effect.control}"


def _label(contrast: Contrast) -> str:
    net = f", net of {contrast.control}" if isinstance(contrast, NetEffect) else ""
    return f"{contrast.method} − {contrast.reference}{net}"


def _of_seeds(contrast: Contrast) -> Iterable[list[str]]:
    for pair in contrast.pairs:
        error = "" if pair.image_error is None else f" ± {formatting.value(pair.image_error)}"
        difference = formatting.signed(pair.difference) + error
        yield [_label(contrast), str(pair.seed), *_gains(pair), difference]


def _over_seeds(contrast: Contrast) -> Iterable[list[str]]:
    if contrast.interval is not None:
        mean = f"{formatting.signed(contrast.mean)} {formatting.interval(contrast.interval)}"
        yield [_label(contrast), "all, 95 %", *_gains(contrast), mean]


def _gains(measured: Contrast | Pair | NetPair) -> list[str]:
    if isinstance(measured, PairedDifference | Pair):
        return []
    return [formatting.signed(measured.gain), formatting.signed(measured.control_gain)]
