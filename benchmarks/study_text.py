"""``docs/study.md`` from the study's comparisons: every number and every sentence is theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measure import table
from qatval import numbers

Document = Mapping[str, Any]

SCHEDULES = {
    "decayed": "The profile's own schedule: a learning rate that decays",
    "constant": "The same with a constant learning rate",
}


@dataclass(frozen=True)
class Cost:
    """What the study took, and what it would have taken with a training for each method.

    Attributes:
        runs: Methods scored.
        trainings: Trainings run.
        apart: Trainings it would have been, one for each method that trains.
        hours: From the first run to the last, as if one process after the other.
        training_hours, apart_hours: Of those the trainings, and what they would have taken apart.
        jobs: Processes at a time.
    """

    runs: int
    trainings: int
    apart: int
    hours: float
    training_hours: float
    apart_hours: float
    jobs: int


def render(documents: Mapping[str, Document], cost: Cost, how: str) -> str:
    """Return the document.

    Args:
        documents: Comparison of each schedule.
        cost: What it took.
        how: Date, machine and versions.
    """
    lines = [*_opening(documents, how), *_answers(documents), *_limits()]
    for schedule, title in SCHEDULES.items():
        if schedule in documents:
            lines += _schedule(documents[schedule], title)
    lines += _cost(cost)
    return "\n".join(lines).rstrip() + "\n"


def _opening(documents: Mapping[str, Document], how: str) -> Iterator[str]:
    seeds = sorted({run["seed"] for document in documents.values() for run in document["runs"]})
    yield "# Study: do the methods work, net of their controls?"
    yield ""
    yield (
        "Written by `python benchmarks/study.py` from the comparisons of its own runs: yolo10n on "
        "the embedded data, profile `smoke` (256 training images, 128 validation images, 128 px, "
        f"six epochs of 16 steps), seeds {', '.join(map(str, seeds))}. Values are mAP 50-95, "
        "intervals are at 95 % over seeds and validation images and not corrected for the number "
        f"of comparisons. {how}"
    )
    yield ""


def _answers(documents: Mapping[str, Document]) -> Iterator[str]:
    yield "## What it says"
    yield ""
    for schedule, document in documents.items():
        where = {"decayed": "With a decaying", "constant": "With a constant"}[schedule]
        groups = document["groups"]
        for kind, gain, control in (
            ("averaging", "averaging", "the same averaging in FP32"),
            ("correction", "QC", "re-estimated BatchNorm statistics"),
            ("correction-in-float", "QC", "the same correction in FP32"),
        ):
            found = [(g, e) for g in groups for e in g["net_effects"] if e["kind"] == kind]
            yield from _told(f"{where} learning rate, {gain} net of {control}", found)
        plain = [
            (g, d)
            for g in groups
            for d in g["differences"]
            if d["reference"] == "baseline" and d["method"] in ("dampen", "freeze")
        ]
        yield from _told(f"{where} learning rate, dampening and freezing against baseline", plain)
    runs = [run for document in documents.values() for run in document["runs"]]
    completed = [run["outcome"] for run in runs if run["outcome"] != "incomplete"]
    collapsed = completed.count("collapsed")
    yield f"- {collapsed or 'None'} of {len(completed)} runs collapsed."
    yield ""


def _told(what: str, found: Sequence[tuple[Document, Document]]) -> Iterator[str]:
    """Say in how many cases a difference is told from zero, and name those."""
    if not found:
        return
    told = [(group, one) for group, one in found if one["tells"]]
    above = sum(one["mean"] > 0 for _, one in told)
    means = [one["mean"] for _, one in found]
    yield (
        f"- {what}: of {len(found)} cases {above} above zero, {len(told) - above} below, "
        f"{len(found) - len(told)} not told from zero. Means from {numbers.signed(min(means))} to "
        f"{numbers.signed(max(means))}."
    )
    for group, one in told:
        mean, interval = numbers.signed(one["mean"]), numbers.interval(one["interval"])
        yield f"  - {one['method']} at {_setting(group)}: {mean} {interval}"


def _limits() -> Iterator[str]:
    yield "## What it supports, and what it does not"
    yield ""
    yield (
        "It supports statements about short fine-tunings (96 optimizer steps) of one small "
        "detector on drawn images, scored on 128 of them. A difference that is not told from zero "
        "is not shown to be there and not shown to be absent. It does not say what happens in the "
        "dozens of epochs after which a collapse was seen, on COCO, in larger models, or with "
        "activations quantized. In 96 steps an oscillation frequency has no time to become what "
        "it is in Nagel et al.: one reversal marks a weight for about 69 steps, so the share means "
        '"reversed lately". The comparisons are not corrected for their number: of twenty that '
        "measure nothing, one is expected to be told from zero."
    )
    yield ""


def _schedule(document: Document, title: str) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    for group in document["groups"]:
        yield f"### {_setting(group)}"
        yield ""
        if group["fp32_value"]:
            checkpoint = numbers.value(group["fp32_value"]["mean"])
            yield f"The FP32 checkpoint scores {checkpoint}."
            yield ""
        yield table(
            ["method", "mAP 50-95", "spread", "against baseline", "oscillating", "BN drift, nats"],
            [_row(method, group) for method in group["methods"]],
        )
        yield ""
        yield table(
            ["gain", "of the method", "of its control", "net", "interval"],
            [_net(effect) for effect in group["net_effects"]],
        )
        yield ""
        yield from (f"- {effect['sentence']}." for effect in group["net_effects"])
        yield ""


def _row(method: Document, group: Document) -> list[str]:
    against = next(
        (
            f"{numbers.signed(d['mean'])} {numbers.interval(d['interval'])}"
            for d in group["differences"]
            if (d["method"], d["reference"]) == (method["method"], "baseline")
        ),
        "",
    )
    final = method["final_value"]
    control = " (control)" if method["role"] == "control" else ""
    return [
        f"{method['method']}{control}",
        numbers.value(final and final["mean"]),
        numbers.value(final and final["deviation"]),
        against,
        numbers.percent(_mean(method["oscillating"])),
        numbers.divergence(_mean(method["batchnorm_drift"])),
    ]


def _net(effect: Document) -> list[str]:
    return [
        f"{effect['method']} over {effect['reference']}, net of {effect['control']}",
        numbers.signed(effect["gain"]),
        numbers.signed(effect["control_gain"]),
        numbers.signed(effect["mean"]),
        numbers.interval(effect["interval"]),
    ]


def _mean(spread: Document | None) -> float | None:
    return None if spread is None else spread["mean"]


def _setting(group: Document) -> str:
    """Name a precision; scales are learned in all of them."""
    return str(group["precision"]).removesuffix(" learned")


def _cost(cost: Cost) -> Iterable[str]:
    yield "## What it took"
    yield ""
    took, trainings, apart = (
        numbers.duration(3600 * hours)
        for hours in (cost.hours, cost.training_hours, cost.apart_hours)
    )
    yield (
        f"{cost.runs} runs on {cost.trainings} trainings, {took} of process time with {cost.jobs} "
        f"processes at a time. The trainings took {trainings} of it; one for each method would "
        f"have been {cost.apart} trainings and {apart}, "
        f"{cost.apart_hours / cost.training_hours:.1f} times as long."
    )
    yield ""
