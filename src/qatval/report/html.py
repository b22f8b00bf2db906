"""The comparison as one self-contained HTML file: no script, nothing loaded from elsewhere.

This module decides what is shown; ``comparison.html.jinja`` says where and ``report.css`` how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import jinja2
import markupsafe

from qatval.analysis.document import Comparison, Group, MethodEntry, RunEntry, Spread
from qatval.analysis.effects import method_order
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.quantization import in_words
from qatval.core.stability import LEAST_SHARE_OF_FP32
from qatval.core.summary import Coverage
from qatval.report.answer import Answer, answer
from qatval.report.drawing import Chart, Style, styles
from qatval.report.group_charts import net_chart, value_charts
from qatval.report.images import SCORE, ExampleImages, example_images
from qatval.report.run_charts import RunView, run_view
from qatval.report.terminal import outcome, reference_values, share_of_fp32

# A page of a thousand runs helps nobody; those that did not hold come first.
DETAILED_RUNS = 36
OPEN_IMAGES = 3
OPEN_METHODS = 5
"""With more methods than these, the images as the controls see them are folded."""

_SEED_COLUMNS = 6


@dataclass(frozen=True)
class GroupView:
    """Comparable runs: their methods side by side."""

    entry: Group
    answer: Answer
    seeds: Sequence[int]
    facts: Sequence[str]
    rows: Sequence[tuple[MethodEntry, Sequence[Sequence[RunEntry]]]]
    reference_values: Sequence[tuple[str, str, Spread | None]]
    net: Chart | None
    charts: Sequence[Chart]
    images: ExampleImages | str
    folded: AbstractSet[str]
    coverage: Coverage | None
    runs: Sequence[RunView]


def render_html(document: Comparison, runs: Sequence[LoadedRun]) -> str:
    """Return the report of a comparison.

    Args:
        document: The comparison.
        runs: What it was made from.
    """
    loaded = {run.run_id: run for run in reversed(runs)}
    roles = {run.method: run.role for run in document.runs}
    own_styles = styles({method: roles[method] for method in method_order(roles)})
    detailed = _detailed(document)
    groups = [_group(group, document, loaded, own_styles, detailed) for group in document.groups]
    shown = [view.images for view in groups if isinstance(view.images, ExampleImages)]
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
        "counted": formatting.count,
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    source, _, _ = jinja2.PackageLoader("qatval", "report").get_source(environment, "report.css")
    return environment.get_template("comparison.html.jinja").render(
        document=document,
        groups=groups,
        styles=own_styles,
        pictures={example.key: example for images in shown for example in images.examples},
        headline=_headline(document),
        totals=_totals(document),
        left_out=len(document.runs) - len(detailed),
        outcome=outcome,
        share_of_fp32=share_of_fp32,
        widths=_widths,
        least_share=LEAST_SHARE_OF_FP32,
        least_score=SCORE,
        open_images=OPEN_IMAGES,
        css=markupsafe.Markup(source),
    )


def _detailed(document: Comparison) -> set[str]:
    urgency = ["collapsed", "degenerate", "disputed", "incomplete", "stable"]
    ranked = sorted(document.runs, key=lambda run: urgency.index(run.outcome))
    return {run.run_id for run in ranked[:DETAILED_RUNS]}


def _totals(document: Comparison) -> dict[str, int]:
    outcomes = [run.outcome for run in document.runs]
    return {
        "runs": len(outcomes),
        "held": outcomes.count("stable"),
        "collapsed": outcomes.count("collapsed"),
        "worth nothing": outcomes.count("degenerate"),
        "disputed": outcomes.count("disputed"),
        "incomplete": outcomes.count("incomplete"),
        "unreadable": len(document.unreadable),
    }


def _headline(document: Comparison) -> str:
    totals = _totals(document)
    completed = totals["runs"] - totals["incomplete"]
    if completed == 0:
        return "No run was completed"
    failed = completed - totals["held"]
    if failed == 0:
        shares = [run.share_of_fp32 for run in document.runs]
        poor = sum(share is not None and share < LEAST_SHARE_OF_FP32 for share in shares)
        below = f", {poor if completed > 1 else 'but'} below half of FP32" if poor else ""
        held = "The run held" if completed == 1 else f"All {completed} completed runs held"
        return held + below
    what = "collapsed" if totals["collapsed"] == failed else "did not hold"
    return f"{failed} of {formatting.count(completed, 'completed run')} {what}"


def _group(
    group: Group,
    document: Comparison,
    loaded: Mapping[str, LoadedRun],
    styles: Mapping[str, Style],
    detailed: set[str],
) -> GroupView:
    entries = [run for run in document.runs if group.name in run.groups]
    members = [loaded[entry.run_id] for entry in entries]
    seeds = sorted({entry.seed for entry in entries})
    columns = seeds if len(seeds) <= _SEED_COLUMNS else []
    by_cell: dict[tuple[str, int], list[RunEntry]] = {}
    for entry in entries:
        by_cell.setdefault((entry.method, entry.seed), []).append(entry)
    coverages = [m.summary.quantization.coverage for m in members if m.completed]
    controls = {entry.method for entry in group.methods if entry.role == "control"}
    many = len(group.methods) > max(OPEN_METHODS, len(controls))
    return GroupView(
        entry=group,
        answer=answer(group),
        seeds=columns,
        facts=_group_facts(group),
        rows=[
            (method, [by_cell.get((method.method, seed), []) for seed in columns])
            for method in group.methods
        ],
        reference_values=reference_values(group),
        net=net_chart(group.net_effects, styles),
        charts=value_charts(group, entries, styles),
        images=example_images(members),
        folded=controls if many else set(),
        coverage=next((coverage for coverage in coverages if coverage), None),
        runs=[
            run_view(entry, loaded[entry.run_id], styles[entry.method])
            for entry in entries
            # a float control that is in several groups is shown in the first
            if entry.run_id in detailed and entry.group == group.name
        ],
    )


def _group_facts(group: Group) -> list[str]:
    wanted = group.conditions
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
        *(["anchored statistics"] if wanted["training"]["batchnorm"] == "anchored" else []),
        in_words(wanted["quantization"]),
        group.precision,
    ]


def _widths(coverage: Coverage) -> str:
    """Say how many layers have how many bits, e.g. ``"94 convolutions at 4 bit, 13 at 8 bit"``."""
    widths = Counter(layer.bits for layer in coverage.layers if layer.bits)
    said = [f"{count} at {bits} bit" for bits, count in widths.most_common()]
    return ", ".join(said).replace(" at ", " convolutions at ", 1)
