"""The comparison as one self-contained HTML file: no script, nothing loaded from elsewhere.

This module decides what is shown; ``comparison.html.jinja`` says where and ``report.css`` how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import markupsafe

from qatval import numbers
from qatval.comparison import Comparison, method_order
from qatval.report.charts import Chart, Level, Row, Series, dot_chart, line_chart, range_chart
from qatval.report.images import Strip, strip
from qatval.report.terminal import outcome
from qatval.runs import LoadedRun

# A page of a thousand runs helps nobody; those that did not hold come first.
DETAILED_RUNS = 36
_STYLES = 5
_SEED_COLUMNS = 6
# History metrics under this prefix are shares of weights: oscillating, or changing their code.
_SHARES = "quant/"

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class RunView:
    """A run in detail."""

    entry: Entry
    style: int
    facts: Sequence[tuple[str, str]]
    charts: Sequence[Chart]


@dataclass(frozen=True)
class GroupView:
    """Comparable runs: their methods side by side."""

    entry: Entry
    seeds: Sequence[int]
    facts: Sequence[str]
    rows: Sequence[tuple[Entry, int, Sequence[Sequence[Entry]]]]
    values: Chart | None
    differences: Chart | None
    strip: Strip | str
    coverage: Entry | None
    runs: Sequence[RunView]


def render_html(document: Comparison, runs: Sequence[LoadedRun]) -> str:
    """Return the report of a comparison.

    Args:
        document: The comparison.
        runs: What it was made from.
    """
    loaded = {run.run_id: run for run in reversed(runs)}
    styles = _styles(document)
    detailed = _detailed(document)
    groups = [_group(group, document, loaded, styles, detailed) for group in document["groups"]]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qatval", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": numbers.value,
        "signed": numbers.signed,
        "interval": numbers.interval,
        "percent": numbers.percent,
    }
    source, _, _ = jinja2.PackageLoader("qatval", "report").get_source(environment, "report.css")
    return environment.get_template("comparison.html.jinja").render(
        document=document,
        groups=groups,
        headline=_headline(document),
        totals=_totals(document),
        left_out=len(document["runs"]) - len(detailed),
        outcome=outcome,
        css=markupsafe.Markup(source),
    )


def _styles(document: Comparison) -> dict[str, int]:
    order = method_order(run["method"] for run in document["runs"])
    return {method: index % _STYLES for index, method in enumerate(order)}


def _detailed(document: Comparison) -> set[str]:
    urgency = ["collapsed", "degenerate", "incomplete", "stable"]
    ranked = sorted(document["runs"], key=lambda run: urgency.index(run["outcome"]))
    return {run["run_id"] for run in ranked[:DETAILED_RUNS]}


def _totals(document: Comparison) -> dict[str, int]:
    outcomes = [run["outcome"] for run in document["runs"]]
    return {
        "runs": len(outcomes),
        "held": outcomes.count("stable"),
        "collapsed": outcomes.count("collapsed"),
        "never learned": outcomes.count("degenerate"),
        "incomplete": outcomes.count("incomplete"),
        "unreadable": len(document["unreadable"]),
    }


def _headline(document: Comparison) -> str:
    totals = _totals(document)
    completed = totals["runs"] - totals["incomplete"]
    if completed == 0:
        return "No run was completed"
    failed = completed - totals["held"]
    if failed == 0:
        return "The run held" if completed == 1 else f"All {completed} completed runs held"
    what = "collapsed" if totals["collapsed"] == failed else "did not hold"
    return f"{failed} of {numbers.count(completed, 'completed run')} {what}"


def _group(
    group: Entry,
    document: Comparison,
    loaded: Mapping[str, LoadedRun],
    styles: Mapping[str, int],
    detailed: set[str],
) -> GroupView:
    entries = [run for run in document["runs"] if run["group"] == group["name"]]
    members = [loaded[entry["run_id"]] for entry in entries]
    seeds = sorted({entry["seed"] for entry in entries})
    columns = seeds if len(seeds) <= _SEED_COLUMNS else []
    by_cell: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        by_cell.setdefault((entry["method"], entry["seed"]), []).append(entry)
    coverages = [m.section("quantization").get("coverage") for m in members if m.completed]
    return GroupView(
        entry=group,
        seeds=columns,
        facts=_group_facts(group),
        rows=[
            (
                method,
                styles[method["method"]],
                [by_cell.get((method["method"], seed), []) for seed in columns],
            )
            for method in group["methods"]
        ],
        values=_values(group, entries, styles),
        differences=_differences(group, styles),
        strip=strip(members),
        coverage=next((coverage for coverage in coverages if coverage), None),
        runs=[
            _run(entry, loaded[entry["run_id"]], styles[entry["method"]])
            for entry in entries
            if entry["run_id"] in detailed
        ],
    )


def _group_facts(group: Entry) -> list[str]:
    wanted = group["conditions"]
    images = wanted["dataset"]
    return [
        f"{wanted['model']['imgsz']} px",
        *(
            numbers.count(images[f"{split}_images"], f"{what} image")
            for split, what in (("train", "training"), ("val", "validation"))
            if images[f"{split}_images"] is not None
        ),
        numbers.count(wanted["training"]["epochs"], "epoch"),
        f"batch {wanted['training']['batch']}",
        "4-bit weights, activations in float",
    ]


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
                f"{name}, seed {entry['seed']}: {numbers.value(entry['final_value'])}"
                + ("" if entry["outcome"] == "stable" else f", {entry['outcome']}"),
                entry["outcome"] != "stable",
                entry["trajectory"] or entry["seed"],
            )
            for entry in of_method
        ]
        rows.append(Row(name, styles[name], dots, final["mean"]))
        table += [[name, str(e["seed"]), numbers.value(e["final_value"])] for e in of_method]
    if not rows:
        return None
    levels = [
        Level(label, group[key]["mean"], kind)
        for label, key, kind in (
            ("FP32", "fp32_value", "fp32"),
            ("untrained W4", "ptq_value", "untrained"),
        )
        if group[key] is not None
    ]
    return dot_chart(
        "Final mAP 50-95 of every run",
        "A dot per run, a bar at each method's mean; thin lines join runs of one training. "
        "Crossed-out dots collapsed or never learned.",
        rows,
        x_label="mAP 50-95",
        levels=levels,
        join=True,
        header=["method", "seed", "final mAP 50-95"],
        table=table,
    )


def _differences(group: Entry, styles: Mapping[str, int]) -> Chart | None:
    rows, table = [], []
    for difference in group["differences"]:
        label = f"{difference['method']} − {difference['reference']}"
        dots = []
        for pair in difference["pairs"]:
            error = pair["image_error"]
            text = numbers.signed(pair["difference"])
            over_images = "" if error is None else f" ± {numbers.value(error)}"
            dots.append((pair["difference"], f"{label}, seed {pair['seed']}: {text}", False, None))
            table.append([label, str(pair["seed"]), text + over_images])
        bounds = difference["interval"]
        rows.append(
            Row(
                label,
                styles[difference["method"]],
                dots,
                difference["mean"],
                None if bounds is None else (bounds[0], bounds[1]),
            )
        )
        if bounds is not None:
            mean = numbers.signed(difference["mean"])
            table.append([label, "all, 95 %", f"{mean} {numbers.interval(bounds)}"])
    if not rows:
        return None
    return dot_chart(
        "Paired differences",
        "A dot per seed, a bar across at the mean, a bar along for the 95 % interval over seeds "
        "and validation images, which needs three seeds. Right of the line is better.",
        rows,
        x_label="difference in mAP 50-95",
        levels=[Level("no difference", 0.0, "zero")],
        header=["difference", "seed", "mAP 50-95 ± standard error over images"],
        table=table,
    )


def _run(entry: Entry, run: LoadedRun, style: int) -> RunView:
    charts = (_accuracy(run, style), _losses(run), *_corrections(run), _shares(run))
    return RunView(entry, style, _run_facts(run), [chart for chart in charts if chart is not None])


def _run_facts(run: LoadedRun) -> list[tuple[str, str]]:
    method, training = run.section("method"), run.section("training")
    environment, ema = run.section("environment"), method["ema"]
    facts = [
        ("best", numbers.value(run.best)),
        ("final", numbers.value(run.final)),
        ("FP32 checkpoint", numbers.value(run.metric("fp32_value"))),
        ("untrained W4", numbers.value(run.metric("ptq_value"))),
    ]
    if (before := run.metric("before_qc_value")) is not None and method["qc"]["enabled"]:
        facts.append(("before QC", numbers.value(before)))
    if ema["enabled"]:
        if (effective := ema.get("effective_decay")) is not None:
            facts.append(("effective decay", f"{effective:.4f}"))
        if (differing := ema.get("codes_differing_from_raw")) is not None:
            facts.append(("codes unlike raw", numbers.percent(differing)))
    facts.append(("device", str(training["device"])))
    facts += [(name, str(environment[name])) for name in ("torch",) if environment.get(name)]
    if isinstance(total := run.section("timings").get("total"), int | float):
        facts.append(("time", numbers.duration(total)))
    return facts


def _history(run: LoadedRun) -> Sequence[Entry]:
    history = run.summary.get("history") or []
    return [entry for entry in history if isinstance(entry, Mapping)]


def _accuracy(run: LoadedRun, style: int) -> Chart | None:
    points: list[tuple[float, float | None]] = [
        (float(entry["epoch"]), entry["value"]) for entry in _history(run)
    ]
    names: dict[float, str] = {}
    if run.section("method")["qc"]["enabled"] and run.final is not None and points:
        after = points[-1][0] + 1
        points.append((after, run.final))
        names[after] = "QC"
    if run.best is None or not any(y is not None for _, y in points):
        return None
    levels = [Level("collapse", 0.5 * run.best, "collapse")]
    for label, metric, kind in (
        ("FP32", "fp32_value", "fp32"),
        ("untrained W4", "ptq_value", "untrained"),
    ):
        if (value := run.metric(metric)) is not None:
            levels.append(Level(label, value, kind))
    return line_chart(
        "mAP 50-95 per epoch",
        "A final value below the collapse line, half of the best, is a collapse.",
        [Series(run.method, style, points)],
        x_names=names,
        levels=levels,
        zero=True,
        show=numbers.value,
    )


def _losses(run: LoadedRun) -> Chart | None:
    series = [
        Series("training", 3, _summed(run, "train/")),
        Series("validation", 4, _summed(run, "val/")),
    ]
    series = [s for s in series if any(y is not None for _, y in s.points)]
    if not series:
        return None
    return line_chart(
        "Loss per epoch",
        "Sum of the detection losses, on training and on validation images.",
        series,
        show=lambda value: f"{value:.2f}",
    )


def _summed(run: LoadedRun, prefix: str) -> list[tuple[float, float | None]]:
    points: list[tuple[float, float | None]] = []
    for entry in _history(run):
        metrics = entry.get("metrics") or {}
        parts = [v for k, v in metrics.items() if k.startswith(prefix) and v is not None]
        points.append((float(entry["epoch"]), sum(parts) if parts else None))
    return points


def _corrections(run: LoadedRun) -> list[Chart]:
    changes = run.section("method")["qc"].get("changes")
    if not changes:
        return []
    return [
        range_chart(
            "What QC changed: gamma",
            "Range of gamma over the channels of each layer; 1 leaves a channel as it was.",
            [(name, change["gamma_min"], change["gamma_max"]) for name, change in changes.items()],
            unchanged=1.0,
            header=["layer", "smallest gamma", "largest gamma"],
            show="{:.4f}".format,
        ),
        range_chart(
            "What QC changed: beta",
            "Largest size of beta over the channels of each layer; 0 leaves them as they were.",
            [(name, 0.0, change["beta_max_abs"]) for name, change in changes.items()],
            unchanged=0.0,
            header=["layer", "smallest", "largest size of beta"],
            show="{:.4f}".format,
        ),
    ]


def _shares(run: LoadedRun) -> Chart | None:
    history = _history(run)
    names = sorted({k for e in history for k in e.get("metrics") or {} if k.startswith(_SHARES)})
    if not names:
        return None
    return line_chart(
        "Oscillation",
        "Share of the weights that oscillate or change their code.",
        [
            Series(
                name.removeprefix(_SHARES).replace("_", " "),
                index % _STYLES,
                [(float(e["epoch"]), (e.get("metrics") or {}).get(name)) for e in history],
            )
            for index, name in enumerate(names)
        ],
        show=numbers.percent,
        zero=True,
    )
