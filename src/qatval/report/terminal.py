"""The comparison as a table for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from qatval.analysis.comparison import Comparison
from qatval.core import formatting
from qatval.core.quantization import FLOAT_MODE
from qatval.core.stability import LEAST_SHARE_OF_FP32

WIDTH = 100
"""What of FP32 a model must keep for "held" to stand alone."""

_SEED_COLUMNS = 5


def terminal_table(document: Comparison) -> str:
    """Return the comparison as plain text: a table per group, what it tells, and the gate."""
    blocks = [
        "\n".join(_group(group, [r for r in document["runs"] if group["name"] in r["groups"]]))
        for group in document["groups"]
    ]
    return "\n\n".join([*blocks, "\n".join(_gate(document["gate"]))]) + "\n"


def _group(group: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield f"{group['name']}: mAP 50-95 on {_validation_images(group)}"
    if group["not_comparable_with"]:
        differing = ", ".join(difference["field"] for difference in group["differs_in"][:3])
        yield _cut(f"  not comparable with {group['not_comparable_with']}: differs in {differing}")
    seeds = sorted({run["seed"] for run in runs})
    per_seed = seeds if len(seeds) <= _SEED_COLUMNS else []
    header = [
        "method",
        *(f"seed {seed}" for seed in per_seed),
        "mean",
        "spread",
        "of FP32",
        "outcome",
    ]
    rows = [header]
    controls = False
    for method in group["methods"]:
        if method["role"] == "control" and not controls:
            rows.append(["controls", *[""] * (len(header) - 1)])
            controls = True
        final = method["final_value"]
        cells = [
            _of_seed([r for r in runs if r["method"] == method["method"] and r["seed"] == seed])
            for seed in per_seed
        ]
        rows.append(
            [
                method["method"],
                *cells,
                formatting.value(final and final["mean"]),
                formatting.value(final and final["deviation"]),
                share_of_fp32(method),
                outcome(method),
            ]
        )
    for _, label, measured in orientation(group):
        rows.append(
            [
                label,
                *[""] * len(per_seed),
                formatting.value(None if measured is None else measured["mean"]),
                "",
                "",
                "" if measured else "not measured",
            ]
        )
    yield from _aligned(rows)
    if group["against_post_training"]:
        yield from _wrapped(group["against_post_training"]["sentence"])
    for effect in group["net_effects"]:
        yield from _wrapped(effect["sentence"])
    if group["not_net"]:
        yield from _wrapped(group["not_net"]["sentence"])
    for difference in group["differences"]:
        yield _cut(f"  {difference['sentence']}")
    for reference in group["references"]:
        yield from _wrapped(reference["sentence"])


def orientation(group: Mapping[str, Any]) -> Sequence[tuple[str, str, Mapping[str, Any] | None]]:
    """Return what was measured beside the methods: its key, its name, and its spread."""
    mode = group["conditions"]["quantization"]["mode"]
    measured = [("fp32_value", "FP32 checkpoint", group["fp32_value"])]
    if mode != FLOAT_MODE:
        measured.append(("ptq_value", f"untrained {mode}", group["ptq_value"]))
        if group["start_value"] is not None and group["start_value"] != group["ptq_value"]:
            measured.append(("start_value", "start of training", group["start_value"]))
    return measured


def share_of_fp32(method: Mapping[str, Any]) -> str:
    """Write the mean share of the FP32 checkpoint's value that a method's runs keep."""
    share = method["share_of_fp32"]
    return formatting.MISSING if share is None else f"{share['mean']:.0%}"


def outcome(method: Mapping[str, Any]) -> str:
    """Say what became of a method's runs, e.g. ``"2 of 3 collapsed, 1 incomplete"``.

    Nothing is said to have held without saying so if it is worth less than half of FP32.
    """
    completed = method["completed"]
    parts = [
        f"{method[what]} of {completed} {what}"
        for what in ("collapsed", "degenerate", "disputed")
        if method[what]
    ]
    if completed and not parts:
        share = method["share_of_fp32"]
        poor = ""
        if share is not None and share["min"] < LEAST_SHARE_OF_FP32:
            poor = (
                " below half of FP32"
                if share["max"] < LEAST_SHARE_OF_FP32
                else ", some below half of FP32"
            )
        parts = [f"{completed} of {completed} held{poor}"]
    if method["incomplete"]:
        parts.append(f"{method['incomplete']} incomplete")
    return ", ".join(parts)


def _of_seed(runs: Sequence[Mapping[str, Any]]) -> str:
    completed = [run for run in runs if run["outcome"] != "incomplete"]
    if not completed:
        return "incomplete" if runs else formatting.MISSING
    last = completed[-1]
    mark = "" if last["outcome"] == "stable" else "!"
    return formatting.value(last["final_value"]) + mark


def _validation_images(group: Mapping[str, Any]) -> str:
    images = group["conditions"]["dataset"]["val_images"]
    return "all validation images" if images is None else f"{images} validation images"


def _gate(gate: Mapping[str, Any]) -> Iterable[str]:
    yield f"yolo10m gate: {'open' if gate['yolo10m_allowed'] else 'closed'}"
    for reason in gate["reasons"]:
        yield f"  {reason}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield _cut("  " + "  ".join(cells).rstrip())


def _wrapped(sentence: str) -> Iterable[str]:
    return wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
