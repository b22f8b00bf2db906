"""The comparison as Markdown, for a pull request or an issue."""

from __future__ import annotations

from collections.abc import Iterator

from qatval.analysis.document import Comparison, Gate, Group, MethodEntry
from qatval.core import formatting
from qatval.report.run_markdown import escape, table
from qatval.report.terminal import mean_of, outcome, reference_values, share_of_fp32


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison as Markdown: the gate, a section per group, every run."""
    lines = ["# Comparison", "", *_gate(comparison.gate)]
    for group in comparison.groups:
        lines += _group(group)
    lines += _runs(comparison)
    lines += _notes("Could not be read", [item.reason for item in comparison.unreadable])
    lines += _notes("Warnings", comparison.warnings)
    return "\n".join(lines).rstrip() + "\n"


def _gate(gate: Gate) -> Iterator[str]:
    yield f"**yolo10m gate: {'open' if gate.yolo10m_allowed else 'closed'}**"
    yield ""
    for reason in gate.reasons:
        yield f"- {escape(reason)}"
    yield ""


def _group(group: Group) -> Iterator[str]:
    yield f"## {escape(group.name)}"
    yield ""
    if group.not_comparable_with:
        yield f"Not comparable with {escape(group.not_comparable_with)}; it differs in:"
        yield ""
        for difference in group.differs_in:
            yield (
                f"- `{difference.field}`: {escape(str(difference.value))} instead of "
                f"{escape(str(difference.other))}"
            )
        yield ""
    numeric = ("mAP 50-95", "spread", "of FP32", "oscillating", "BatchNorm drift")
    yield from table(
        ("method", "runs", "seeds", *numeric, "outcome", "outcomes agree"),
        [_method(method) for method in group.methods] + list(_reference_rows(group)),
        right=("runs", *numeric),
    )
    yield ""
    if group.against_post_training:
        yield f"**{escape(group.against_post_training.sentence)}**"
        yield ""
    if group.net_effects:
        yield "Net of their controls:"
        yield ""
        yield from (f"- **{escape(effect.sentence)}**" for effect in group.net_effects)
        yield ""
    if group.not_net:
        yield f"- {escape(group.not_net.sentence)}"
    for paired in group.differences:
        pairing = "" if paired.shared_training else " (paired by seed, trained apart)"
        yield f"- {escape(paired.sentence)}{pairing}"
    for reference in group.references:
        yield f"- {escape(reference.sentence)}"
    if group.differences or group.references:
        yield ""
    for varying in group.varying:
        yield f"- its runs differ in `{varying.field}`: {escape(', '.join(varying.values))}"
    if group.varying:
        yield ""


def _method(method: MethodEntry) -> list[str]:
    final = method.final_value
    agree = {True: "yes", False: "no", None: formatting.MISSING}[method.outcomes_agree]
    control = " (control)" if method.role == "control" else ""
    return [
        method.method + control,
        str(method.runs),
        ", ".join(str(seed) for seed in method.seeds) or formatting.MISSING,
        formatting.value(mean_of(final)),
        formatting.value(final.deviation if final else None),
        share_of_fp32(method),
        formatting.percent(mean_of(method.oscillating)),
        formatting.divergence(mean_of(method.batchnorm_drift)),
        outcome(method),
        agree,
    ]


def _reference_rows(group: Group) -> Iterator[list[str]]:
    for _, label, measured in reference_values(group):
        mean = formatting.value(mean_of(measured))
        yield [label, "", "", mean, "", "", "", "", "" if measured else "not measured", ""]


def _runs(comparison: Comparison) -> Iterator[str]:
    yield "## Runs"
    yield ""
    yield from table(
        ("run", "outcome", "best", "final", "final / best", "of FP32", "reference"),
        [
            (
                run.run_id,
                run.outcome + (f": {run.error}" if run.error else ""),
                formatting.value(run.best_value),
                formatting.value(run.final_value),
                formatting.percent(run.final_over_best_ratio),
                formatting.percent(run.share_of_fp32),
                run.reference.result if run.reference else formatting.MISSING,
            )
            for run in comparison.runs
        ],
        right=("best", "final", "final / best", "of FP32"),
    )
    yield ""


def _notes(title: str, notes: list[str]) -> Iterator[str]:
    if notes:
        yield f"## {title}"
        yield ""
        yield from (f"- {escape(note)}" for note in notes)
        yield ""
