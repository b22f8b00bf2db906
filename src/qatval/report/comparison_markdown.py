"""The comparison as Markdown, for a pull request or an issue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qatval.analysis.document import Comparison, Group, MethodEntry, RunEntry
from qatval.core import formatting
from qatval.report.contrasts import (
    HEADER,
    LEGEND,
    collapse_lines,
    contrast_rows,
    contrasts_of,
    look_line,
)
from qatval.report.deployment import NUMERIC, cost_table
from qatval.report.run_markdown import bullets, code, document, escape, section, table
from qatval.report.terminal import (
    mean_of,
    method_numbers,
    outcome,
    reference_values,
    robust_numbers,
)


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison as Markdown: the gate, a section per group, every run."""
    gate, unreadable = comparison.gate, [item.reason for item in comparison.unreadable]
    groups = [
        section(escape(group.name), _group(group, comparison.margin)) for group in comparison.groups
    ]
    return document(
        "# Comparison",
        f"**yolo10m gate: {'open' if gate.yolo10m_allowed else 'closed'}**",
        bullets(map(escape, gate.reasons)),
        *(block for blocks in groups for block in blocks),
        *([LEGEND] if any(map(contrasts_of, comparison.groups)) else []),
        *section("Runs", [_runs(comparison.runs)]),
        *section("Could not be read", [bullets(map(escape, unreadable))]),
        *section("Warnings", [bullets(map(escape, comparison.warnings))]),
    )


def _group(group: Group, margin: float | None) -> Iterator[str]:
    if group.not_comparable_with:
        yield f"Not comparable with {escape(group.not_comparable_with)}; it differs in:"
        yield bullets(
            f"{code(it.field)}: {escape(str(it.value))} instead of {escape(str(it.other))}"
            for it in group.differs_in
        )
    yield escape(look_line(group, margin))
    yield bullets(map(escape, collapse_lines(group)))
    of_values = ("mAP 50-95", "spread", "median", "IQM", "of FP32")
    numeric = (*of_values, "oscillating", "BatchNorm drift")
    yield table(
        ("method", "runs", "seeds", *numeric, "outcome", "outcomes agree"),
        [*map(_method, group.methods), *_reference_rows(group)],
        right=("runs", *numeric),
    )
    if costs := cost_table(group):
        yield "What it costs:"
        yield table(costs.header, costs.rows, right=NUMERIC)
        yield bullets(map(escape, filter(None, (costs.how, *group.costs.notes))))
    if group.against_post_training:
        yield f"**{escape(group.against_post_training.sentence)}**"
    if group.net_effects:
        yield "Net of their controls:"
        yield bullets(f"**{escape(effect.sentence)}**" for effect in group.net_effects)
    told = [group.not_net.sentence] if group.not_net else []
    for paired in group.differences:
        pairing = "" if paired.shared_training else " (paired by seed, trained apart)"
        told.append(paired.sentence + pairing)
    yield bullets(escape(text) for text in [*told, *(it.sentence for it in group.references)])
    if rows := list(contrast_rows(group)):
        yield "The numbers behind them:"
        yield table(HEADER, [[escape(cell) for cell in row] for row in rows], right=HEADER[1:])
    yield bullets(
        f"its runs differ in {code(varying.field)}: {escape(', '.join(varying.values))}"
        for varying in group.varying
    )


def _method(method: MethodEntry) -> list[str]:
    mean, deviation, share = method_numbers(method)
    return [
        method.method + (" (control)" if method.role == "control" else ""),
        str(method.runs),
        ", ".join(str(seed) for seed in method.seeds) or formatting.MISSING,
        mean,
        deviation,
        *robust_numbers(method),
        share,
        formatting.percent(mean_of(method.oscillating)),
        formatting.divergence(mean_of(method.batchnorm_drift)),
        outcome(method),
        {True: "yes", False: "no", None: formatting.MISSING}[method.outcomes_agree],
    ]


def _reference_rows(group: Group) -> Iterator[list[str]]:
    for _, label, measured in reference_values(group):
        mean = formatting.value(mean_of(measured))
        yield [label, "", "", mean, "", "", "", "", "", "", "" if measured else "not measured", ""]


def _runs(runs: Sequence[RunEntry]) -> str:
    numeric = ("best", "final", "final / best", "of FP32")
    rows = [
        (
            run.run_id,
            ": ".join(filter(None, (run.outcome, run.error or run.course))),
            formatting.value(run.best_value),
            formatting.value(run.final_value),
            formatting.percent(run.final_over_best_ratio),
            formatting.percent(run.share_of_fp32),
            run.reference.result if run.reference else formatting.MISSING,
        )
        for run in runs
    ]
    return table(("run", "outcome", *numeric, "reference"), rows, right=numeric)
