"""The comparison as Markdown, for a pull request or an issue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qatval.analysis.comparison import Comparison
from qatval.core import formatting
from qatval.report.run_markdown import escape, table
from qatval.report.terminal import orientation, outcome, share_of_fp32


def render_comparison(document: Comparison) -> str:
    """Return the comparison as Markdown: the gate, a section per group, every run."""
    lines = ["# Comparison", "", *_gate(document["gate"])]
    for group in document["groups"]:
        lines += _group(group)
    lines += _runs(document)
    lines += _notes("Could not be read", [item["reason"] for item in document["unreadable"]])
    lines += _notes("Warnings", document["warnings"])
    return "\n".join(lines).rstrip() + "\n"


def _gate(gate: Mapping[str, Any]) -> Iterator[str]:
    yield f"**yolo10m gate: {'open' if gate['yolo10m_allowed'] else 'closed'}**"
    yield ""
    for reason in gate["reasons"]:
        yield f"- {escape(reason)}"
    yield ""


def _group(group: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {escape(group['name'])}"
    yield ""
    if group["not_comparable_with"]:
        yield f"Not comparable with {escape(group['not_comparable_with'])}; it differs in:"
        yield ""
        for difference in group["differs_in"]:
            yield (
                f"- `{difference['field']}`: {escape(str(difference['value']))} instead of "
                f"{escape(str(difference['other']))}"
            )
        yield ""
    numeric = ("mAP 50-95", "spread", "of FP32", "oscillating", "BatchNorm drift")
    yield from table(
        ("method", "runs", "seeds", *numeric, "outcome", "outcomes agree"),
        [_method(method) for method in group["methods"]] + list(_orientation(group)),
        right=("runs", *numeric),
    )
    yield ""
    if group["against_post_training"]:
        yield f"**{escape(group['against_post_training']['sentence'])}**"
        yield ""
    if group["net_effects"]:
        yield "Net of their controls:"
        yield ""
        yield from (f"- **{escape(effect['sentence'])}**" for effect in group["net_effects"])
        yield ""
    if group["not_net"]:
        yield f"- {escape(group['not_net']['sentence'])}"
    for difference in group["differences"]:
        pairing = "" if difference["shared_training"] else " (paired by seed, trained apart)"
        yield f"- {escape(difference['sentence'])}{pairing}"
    for reference in group["references"]:
        yield f"- {escape(reference['sentence'])}"
    if group["differences"] or group["references"]:
        yield ""
    for varying in group["varying"]:
        yield f"- its runs differ in `{varying['field']}`: {escape(', '.join(varying['values']))}"
    if group["varying"]:
        yield ""


def _method(method: Mapping[str, Any]) -> list[str]:
    final = method["final_value"]
    agree = {True: "yes", False: "no", None: formatting.MISSING}[method["outcomes_agree"]]
    control = " (control)" if method["role"] == "control" else ""
    return [
        method["method"] + control,
        str(method["runs"]),
        ", ".join(str(seed) for seed in method["seeds"]) or formatting.MISSING,
        formatting.value(final and final["mean"]),
        formatting.value(final and final["deviation"]),
        share_of_fp32(method),
        formatting.percent(_mean(method["oscillating"])),
        formatting.divergence(_mean(method["batchnorm_drift"])),
        outcome(method),
        agree,
    ]


def _mean(spread: Mapping[str, Any] | None) -> float | None:
    return None if spread is None else spread["mean"]


def _orientation(group: Mapping[str, Any]) -> Iterator[list[str]]:
    for _, label, measured in orientation(group):
        mean = formatting.value(None if measured is None else measured["mean"])
        yield [label, "", "", mean, "", "", "", "", "" if measured else "not measured", ""]


def _runs(document: Comparison) -> Iterator[str]:
    yield "## Runs"
    yield ""
    yield from table(
        ("run", "outcome", "best", "final", "final / best", "of FP32", "reference"),
        [
            (
                run["run_id"],
                run["outcome"] + (f": {run['error']}" if run["error"] else ""),
                formatting.value(run["best_value"]),
                formatting.value(run["final_value"]),
                formatting.percent(run["final_over_best_ratio"]),
                formatting.percent(run["share_of_fp32"]),
                run["reference"]["result"] if run["reference"] else formatting.MISSING,
            )
            for run in document["runs"]
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
