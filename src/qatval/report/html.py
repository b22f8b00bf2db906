"""The comparison as one self-contained HTML file: no script, nothing loaded from elsewhere.

This module decides what is shown; ``comparison.html.jinja`` says where and ``report.css`` how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import markupsafe

from qatval.analysis.comparison import Comparison
from qatval.analysis.effects import method_order
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.quantization import in_words
from qatval.core.stability import LEAST_SHARE_OF_FP32
from qatval.report.drawing import Chart
from qatval.report.group_charts import net_chart, value_charts
from qatval.report.images import Strip, strip
from qatval.report.run_charts import RunView, run_view
from qatval.report.terminal import orientation, outcome, share_of_fp32

# A page of a thousand runs helps nobody; those that did not hold come first.
DETAILED_RUNS = 36
_STYLES = 5
_SEED_COLUMNS = 6

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class GroupView:
    """Comparable runs: their methods side by side."""

    entry: Entry
    seeds: Sequence[int]
    facts: Sequence[str]
    rows: Sequence[tuple[Entry, int, Sequence[Sequence[Entry]]]]
    orientation: Sequence[tuple[str, str, Entry | None]]
    net: Chart | None
    charts: Sequence[Chart]
    strip: Strip | str
    coverage: Entry | None
    widths: str
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
        "value": formatting.value,
        "signed": formatting.signed,
        "interval": formatting.interval,
        "percent": formatting.percent,
    }
    source, _, _ = jinja2.PackageLoader("qatval", "report").get_source(environment, "report.css")
    return environment.get_template("comparison.html.jinja").render(
        document=document,
        groups=groups,
        headline=_headline(document),
        totals=_totals(document),
        left_out=len(document["runs"]) - len(detailed),
        outcome=outcome,
        share_of_fp32=share_of_fp32,
        css=markupsafe.Markup(source),
    )


def _styles(document: Comparison) -> dict[str, int]:
    order = method_order(run["method"] for run in document["runs"])
    return {method: index % _STYLES for index, method in enumerate(order)}


def _detailed(document: Comparison) -> set[str]:
    urgency = ["collapsed", "degenerate", "disputed", "incomplete", "stable"]
    ranked = sorted(document["runs"], key=lambda run: urgency.index(run["outcome"]))
    return {run["run_id"] for run in ranked[:DETAILED_RUNS]}


def _totals(document: Comparison) -> dict[str, int]:
    outcomes = [run["outcome"] for run in document["runs"]]
    return {
        "runs": len(outcomes),
        "held": outcomes.count("stable"),
        "collapsed": outcomes.count("collapsed"),
        "worth nothing": outcomes.count("degenerate"),
        "disputed": outcomes.count("disputed"),
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
        poor = sum((run["share_of_fp32"] or 1.0) < LEAST_SHARE_OF_FP32 for run in document["runs"])
        below = f", {poor if completed > 1 else 'but'} below half of FP32" if poor else ""
        held = "The run held" if completed == 1 else f"All {completed} completed runs held"
        return held + below
    what = "collapsed" if totals["collapsed"] == failed else "did not hold"
    return f"{failed} of {formatting.count(completed, 'completed run')} {what}"


def _group(
    group: Entry,
    document: Comparison,
    loaded: Mapping[str, LoadedRun],
    styles: Mapping[str, int],
    detailed: set[str],
) -> GroupView:
    entries = [run for run in document["runs"] if group["name"] in run["groups"]]
    members = [loaded[entry["run_id"]] for entry in entries]
    seeds = sorted({entry["seed"] for entry in entries})
    columns = seeds if len(seeds) <= _SEED_COLUMNS else []
    by_cell: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        by_cell.setdefault((entry["method"], entry["seed"]), []).append(entry)
    coverages = [m.section("quantization").get("coverage") for m in members if m.completed]
    coverage = next((coverage for coverage in coverages if coverage), None)
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
        orientation=orientation(group),
        net=net_chart(group, styles),
        charts=value_charts(group, entries, styles),
        strip=strip(members),
        coverage=coverage,
        widths="" if coverage is None else _widths(coverage),
        runs=[
            run_view(entry, loaded[entry["run_id"]], styles[entry["method"]])
            for entry in entries
            # a float control that is in several groups is shown in the first
            if entry["run_id"] in detailed and entry["group"] == group["name"]
        ],
    )


def _group_facts(group: Entry) -> list[str]:
    wanted = group["conditions"]
    images = wanted["dataset"]
    return [
        f"{wanted['model']['imgsz']} px",
        *(
            formatting.count(images[f"{split}_images"], f"{what} image")
            for split, what in (("train", "training"), ("val", "validation"))
            if images[f"{split}_images"] is not None
        ),
        formatting.count(wanted["training"]["epochs"], "epoch"),
        f"batch {wanted['training']['batch']}",
        *(["anchored statistics"] if wanted["training"].get("batchnorm") == "anchored" else []),
        in_words(wanted["quantization"]),
        group["precision"],
    ]


def _widths(coverage: Entry) -> str:
    """Say how many layers have how many bits, e.g. ``"94 convolutions at 4 bit, 13 at 8 bit"``."""
    widths = Counter(layer["bits"] for layer in coverage["layers"] if layer["bits"])
    said = [f"{count} at {bits} bit" for bits, count in widths.most_common()]
    return ", ".join(said).replace(" at ", " convolutions at ", 1)
