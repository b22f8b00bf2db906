"""The charts of a group of comparable runs: final values, net effects, paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qatval.core import formatting
from qatval.report.charts import Level, Row, dot_chart
from qatval.report.drawing import Chart
from qatval.report.terminal import orientation

Entry = Mapping[str, Any]

KINDS = {"fp32_value": "fp32", "ptq_value": "untrained", "start_value": "start"}
"""How a level is drawn, by the metric that it shows."""


def value_charts(
    group: Entry, entries: Sequence[Entry], styles: Mapping[str, int]
) -> Sequence[Chart]:
    """Return the charts of a group's values and differences, as far as there are any.

    Args:
        group: Of the comparison document.
        entries: Its runs, of the same document.
        styles: Of each method.
    """
    found = (_values(group, entries, styles), _differences(group, styles))
    return [chart for chart in found if chart is not None]


def _values(group: Entry, entries: Sequence[Entry], styles: Mapping[str, int]) -> Chart | None:
    rows, table = [], []
    for method in group["methods"]:
        name, final = method["method"], method["final_value"]
        of_method = [e for e in entries if e["method"] == name and e["final_value"] is not None]
        if final is None:
            continue
        dots = [
            (
                entry["final_value"],
                f"{name}, seed {entry['seed']}: {formatting.value(entry['final_value'])}"
                + ("" if entry["outcome"] == "stable" else f", {entry['outcome']}"),
                entry["outcome"] != "stable",
                entry["trajectory"] or entry["seed"],
            )
            for entry in of_method
        ]
        rows.append(Row(name, styles[name], dots, final["mean"]))
        table += [[name, str(e["seed"]), formatting.value(e["final_value"])] for e in of_method]
    if not rows:
        return None
    levels = [
        Level(label, measured["mean"], KINDS[key])
        for key, label, measured in orientation(group)
        if measured is not None
    ]
    return dot_chart(
        "Final mAP 50-95 of every run",
        "A dot per run, a bar at each method's mean; thin lines join runs of one training. "
        "Crossed-out dots did not hold.",
        rows,
        x_label="mAP 50-95",
        levels=levels,
        join=True,
        header=["method", "seed", "final mAP 50-95"],
        table=table,
    )


def net_chart(group: Entry, styles: Mapping[str, int]) -> Chart | None:
    """Return the chart of a group's net effects, None if it has none."""
    effects = group["net_effects"]
    table = [
        [
            _label(effect),
            str(pair["seed"]),
            *map(formatting.signed, _gains(pair)),
            _with_error(pair),
        ]
        for effect in effects
        for pair in effect["pairs"]
    ]
    table += [
        [_label(e), "all, 95 %", *map(formatting.signed, (e["gain"], e["control_gain"])), _mean(e)]
        for e in effects
        if e["interval"] is not None
    ]
    if not effects:
        return None
    return dot_chart(
        "Net effects",
        "What a method gains less what its control gains: the same averaging or correction in "
        "FP32, or fresh BatchNorm statistics in place of QC. Left of the line the control gains "
        "more.",
        [_row(effect, styles) for effect in effects],
        x_label="net gain in mAP 50-95",
        levels=[Level("control gains as much", 0.0, "zero")],
        header=["gain", "seed", "gain", "control's gain", "net ± standard error over images"],
        table=table,
    )


def _differences(group: Entry, styles: Mapping[str, int]) -> Chart | None:
    differences = group["differences"]
    table = []
    for difference in differences:
        label = _label(difference)
        table += [[label, str(pair["seed"]), _with_error(pair)] for pair in difference["pairs"]]
        if difference["interval"] is not None:
            table.append([label, "all, 95 %", _mean(difference)])
    if not differences:
        return None
    return dot_chart(
        "Paired differences",
        "A dot per seed, a bar across at the mean, a bar along for the 95 % interval over seeds "
        "and validation images, which needs three seeds. Right of the line is better.",
        [_row(difference, styles) for difference in differences],
        x_label="difference in mAP 50-95",
        levels=[Level("no difference", 0.0, "zero")],
        header=["difference", "seed", "mAP 50-95 ± standard error over images"],
        table=table,
    )


def _row(contrast: Entry, styles: Mapping[str, int]) -> Row:
    label, bounds = _label(contrast), contrast["interval"]
    control = contrast.get("control")
    name = label if control is None else f"{contrast['method']} net of {control}"
    dots = [
        (
            pair["difference"],
            f"{label}, seed {pair['seed']}: {formatting.signed(pair['difference'])}",
            False,
            None,
        )
        for pair in contrast["pairs"]
    ]
    interval = None if bounds is None else (bounds[0], bounds[1])
    return Row(name, styles[contrast["method"]], dots, contrast["mean"], interval)


def _label(contrast: Entry) -> str:
    control = contrast.get("control")
    net = "" if control is None else f", net of {control}"
    return f"{contrast['method']} − {contrast['reference']}{net}"


def _gains(pair: Entry) -> Iterable[float]:
    return pair["gain"], pair["control_gain"]


def _with_error(pair: Entry) -> str:
    error = pair["image_error"]
    over_images = "" if error is None else f" ± {formatting.value(error)}"
    return formatting.signed(pair["difference"]) + over_images


def _mean(contrast: Entry) -> str:
    return f"{formatting.signed(contrast['mean'])} {formatting.interval(contrast['interval'])}"
