"""The comparison as one self-contained HTML file: no script, nothing loaded from elsewhere.

This module decides what is shown; ``comparison.html.jinja`` says where and ``report.css`` how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import markupsafe

from qatval.analysis.document import Comparison, Group
from qatval.analysis.effects import method_order
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.measurements import Coverage
from qatval.core.quantization import in_words
from qatval.core.stability import LEAST_SHARE_OF_FP32
from qatval.report.answer import answer
from qatval.report.contrasts import HEADER, LEGEND, contrast_rows, look_line
from qatval.report.deployment import NUMERIC, cost_table, run_lines, run_table
from qatval.report.drawing import Style, styles
from qatval.report.group_charts import net_chart, value_charts
from qatval.report.images import SCORE, ExampleImages, example_images
from qatval.report.run_charts import run_charts, run_facts
from qatval.report.terminal import outcome, reference_values, share_of_fp32

# A page of a thousand runs helps nobody; those that did not hold come first.
DETAILED_RUNS = 36
OPEN_IMAGES = 3
OPEN_METHODS = 5
"""With more methods than these, the images as the controls see them are folded."""

_SEED_COLUMNS = 6
_URGENCY = ("collapsed", "degenerate", "disputed", "incomplete", "stable")


def render_html(
    document: Comparison, runs: Sequence[LoadedRun], cache_dir: Path | None = None
) -> str:
    """Return the report of a comparison and of the runs that it was made from.

    ``cache_dir`` is where the subsets are whose images may be shown, None for the default cache.
    """
    loaded = {run.run_id: run for run in reversed(runs)}
    roles = {run.method: run.role for run in document.runs}
    own_styles = styles({method: roles[method] for method in method_order(roles)})
    ranked = sorted(document.runs, key=lambda run: _URGENCY.index(run.outcome))
    detailed = {run.run_id for run in ranked[:DETAILED_RUNS]}
    groups = [
        _group(group, document, loaded, own_styles, detailed, cache_dir)
        for group in document.groups
    ]
    totals = _totals(document)
    shown = [g["images"] for g in groups if isinstance(g["images"], ExampleImages)]
    loader = jinja2.PackageLoader("qatval", "report")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": formatting.value,
        "percent": formatting.percent,
        "counted": formatting.count,
        # but for mAP
        "sentence": lambda text: text if text[1:2].isupper() else text[:1].upper() + text[1:],
    }
    return environment.get_template("comparison.html.jinja").render(
        document=document,
        groups=groups,
        styles=own_styles,
        pictures={example.key: example for images in shown for example in images.examples},
        headline=_headline(document, totals),
        totals=totals,
        left_out=len(document.runs) - len(detailed),
        outcome=outcome,
        share_of_fp32=share_of_fp32,
        widths=_widths,
        least_share=LEAST_SHARE_OF_FP32,
        least_score=SCORE,
        open_images=OPEN_IMAGES,
        contrast_header=HEADER,
        legend=LEGEND,
        numeric=NUMERIC,
        css=markupsafe.Markup(loader.get_source(environment, "report.css")[0]),
    )


def _shown(value: object) -> object:
    """Quote in a text what a reader would not see, or see elsewhere; markup is the page's own."""
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return formatting.printable(value)
    return value


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


def _headline(document: Comparison, totals: Mapping[str, int]) -> str:
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
    cache_dir: Path | None,
) -> dict[str, object]:
    """Return what the template shows of comparable runs: their methods side by side."""
    entries = [run for run in document.runs if group.name in run.groups]
    members = [loaded[entry.run_id] for entry in entries]
    seeds = sorted({entry.seed for entry in entries})
    columns = seeds if len(seeds) <= _SEED_COLUMNS else []
    latest = {(entry.method, entry.seed): entry for entry in entries}
    coverages = [m.summary.quantization.coverage for m in members if m.completed]
    controls = {entry.method for entry in group.methods if entry.role == "control"}
    many = len(group.methods) > max(OPEN_METHODS, len(controls))
    return {
        "entry": group,
        "answer": answer(group),
        "seeds": columns,
        "facts": [*_group_facts(group), look_line(group, document.margin)],
        "rows": [
            (method, [latest.get((method.method, seed)) for seed in columns])
            for method in group.methods
        ],
        "reference_values": reference_values(group),
        "costs": cost_table(group),
        "net": net_chart(group.net_effects, styles),
        "contrasts": list(contrast_rows(group)),
        "charts": value_charts(group, entries, styles),
        "images": example_images(members, cache_dir),
        "folded": controls if many else set(),
        "coverage": next((coverage for coverage in coverages if coverage), None),
        "runs": [
            (
                *(entry, run_facts(run), run_charts(run, styles[entry.method])),
                *(run_table(run.summary), list(run_lines(run.summary))),
            )
            for entry, run in zip(entries, members, strict=True)
            # a float control that is in several groups is shown in the first
            if entry.run_id in detailed and entry.group == group.name
        ],
    }


def _group_facts(group: Group) -> list[str]:
    wanted = group.conditions
    training, images = wanted["training"], wanted["dataset"]
    known = (("training image", images["train_images"]), ("validation image", images["val_images"]))
    return [
        f"{wanted['model']['imgsz']} px",
        *(formatting.count(number, noun) for noun, number in known if number is not None),
        formatting.count(training["epochs"], "epoch"),
        f"batch {training['batch']}",
        *(["anchored statistics"] if training["batchnorm"] == "anchored" else []),
        in_words(wanted["quantization"]),
        group.precision,
    ]


def _widths(coverage: Coverage) -> str:
    """Say how many layers have how many bits, e.g. ``"94 convolutions at 4 bit, 13 at 8 bit"``."""
    widths = Counter(layer.bits for layer in coverage.layers if layer.bits)
    said = [f"{count} at {bits} bit" for bits, count in widths.most_common()]
    return ", ".join(said).replace(" at ", " convolutions at ", 1)
