"""``docs/study.md`` from the study's comparisons: every number and every sentence is theirs.

Beside it the values by seed and the numbers behind each sentence, so that what the page claims can
be reckoned anew when the runs are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from measure import table
from qatval.analysis.claims import NetEffect, PairedDifference
from qatval.analysis.document import Comparison, Group, MethodEntry
from qatval.analysis.intervals import ALPHA
from qatval.core import formatting
from qatval.report.contrasts import HEADER, LEGEND, contrast_rows
from qatval.report.terminal import mean_of, share_of_fp32


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


@dataclass(frozen=True)
class Section:
    """A part of the document, made by one command.

    Attributes:
        name: Of its study file, and of the file in ``benchmarks/results/`` that keeps its values.
        title: Its heading.
        command: What makes it.
        data: What the models were trained and scored on, and how long.
        schedules: Training of the study -> its heading, and how a sentence about it begins.
        supports: What the section can and cannot support.
    """

    name: str
    title: str
    command: str
    data: str
    schedules: Mapping[str, tuple[str, str]]
    supports: str

    def render(self, comparisons: Mapping[str, Comparison], cost: Cost, how: str) -> str:
        """Return the section.

        Args:
            comparisons: Of each schedule.
            cost: What it took.
            how: Date, machine and versions.
        """
        lines = [f"## {self.title}", "", *self._opening(comparisons, how)]
        lines += _answers({self.schedules[name][1]: one for name, one in comparisons.items()})
        lines += ["### What it supports, and what it does not", "", self.supports, ""]
        for schedule, (title, _) in self.schedules.items():
            if schedule in comparisons:
                lines += _schedule(comparisons[schedule], title)
        lines += _cost(cost)
        return "\n".join(lines).rstrip() + "\n"

    @property
    def kept(self) -> str:
        """The file that keeps its values, from the repository's root."""
        return f"benchmarks/results/{self.name}.md"

    def values(self, comparisons: Mapping[str, Comparison]) -> str:
        """Return every run's value and the numbers behind every sentence, as tables."""
        lines = [f"`{self.command}`: mAP 50-95 by seed, and the contrasts. {LEGEND}", ""]
        for schedule, comparison in comparisons.items():
            for group in comparison.groups:
                lines += [f"## {self.schedules[schedule][0]}: {_setting(group)}", ""]
                lines += [_by_seed(comparison, group), ""]
                lines += [table(HEADER, list(contrast_rows(group))), ""]
        return "\n".join(lines).rstrip()

    def _opening(self, comparisons: Mapping[str, Comparison], how: str) -> Iterator[str]:
        seeds = sorted({run.seed for one in comparisons.values() for run in one.runs})
        yield (
            f"Written by `{self.command}` from the comparison of its own runs: {self.data}, seeds "
            f"{', '.join(map(str, seeds))}. Values are mAP 50-95, intervals are at 95 % over seeds "
            "and validation images, each by itself. Told from zero is what remains so after Holm's "
            "correction over all that the comparison of a schedule says, but for the contrast that "
            f"its runs declared (docs/statistics.md). The values by seed are in {self.kept}. {how}"
        )
        yield ""


EMBEDDED = Section(
    name="study_embedded",
    title="On the embedded data",
    command="python benchmarks/study.py",
    data=(
        "yolo10n on drawn images, profile `smoke` (256 training images, 128 validation images, "
        "128 px, six epochs of 16 steps)"
    ),
    schedules={
        "decayed": (
            "The profile's own schedule: a learning rate that decays",
            "With a decaying learning rate, ",
        ),
        "constant": ("The same with a constant learning rate", "With a constant learning rate, "),
    },
    supports=(
        "It supports statements about short fine-tunings (96 optimizer steps) of one small "
        "detector on drawn images, scored on 128 of them. A difference that is not told from zero "
        "is not shown to be there and not shown to be absent. It does not say what happens in the "
        "dozens of epochs after which a collapse was seen, on COCO, in larger models, or with "
        "activations quantized. In 96 steps an oscillation frequency has no time to become what "
        "it is in Nagel et al.: one reversal marks a weight for about 69 steps, so the share means "
        '"reversed lately".'
    ),
)

PHOTOGRAPHS = Section(
    name="study_photographs",
    title="On photographs",
    command="python benchmarks/study.py --photographs",
    data=(
        "a yolo10n that was trained on COCO, on 128 photographs of train2017, scored on 128 of "
        "val2017, 320 px, profile `short` for six epochs of 8 steps at a learning rate of 1e-5"
    ),
    schedules={
        "anchored": (
            "BatchNorm statistics anchored to the checkpoint's (`--batchnorm anchored`)",
            "With anchored statistics, ",
        ),
        "running": (
            "Running averages of BatchNorm statistics, as Ultralytics keeps them",
            "With running averages, ",
        ),
    },
    supports=(
        "128 photographs support what happens to a trained detector between rounding and the first "
        "fifty steps: what rounding costs, what statistics and a better rounding repair, whether "
        "few steps on few images add to that. They do not support what a training on all of COCO "
        "gains: it has 900 times the images, and its labels are not memorised in six epochs. The "
        "validation photographs are as few, and the checkpoint is one of public int8 weights, not "
        "the official file. The control of the teacher, FP32 taught by itself, learns from "
        "rounding noise, of which AdamW makes full steps; what the teacher gains net of it is "
        "flattered. A difference that is not told from zero is not shown to be absent."
    ),
)


def replaced(document: str, section: Section, text: str) -> str:
    """Return the study with one section written anew and the others as they are."""
    known = dict(re.findall(r"(?ms)^## (.+?)$\n(.*?)(?=^## |\Z)", document))
    known = {title: f"## {title}\n{body}" for title, body in known.items()}
    known[section.title] = text
    order = [s.title for s in (PHOTOGRAPHS, EMBEDDED) if s.title in known]
    heading = "# Study: do the methods work, net of their controls?"
    return "\n\n".join([heading, *(known[title].rstrip() for title in order)]) + "\n"


def _answers(comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    yield "### What it says"
    yield ""
    for where, comparison in comparisons.items():
        groups = comparison.groups
        yield from (
            f"- {where}{_setting(group)}: {group.against_post_training.sentence}."
            for group in groups
            if group.against_post_training
        )
        for kind, gain, control in (
            ("averaging", "averaging", "the same averaging in FP32"),
            ("correction", "QC", "re-estimated BatchNorm statistics"),
            ("correction-in-float", "QC", "the same correction in FP32"),
        ):
            found = [(g, e) for g in groups for e in g.net_effects if e.kind == kind]
            yield from _cases(f"{where}{gain} net of {control}", found)
        plain = [
            (g, d)
            for g in groups
            for d in g.differences
            if d.reference == "baseline" and d.method in ("dampen", "freeze")
        ]
        yield from _cases(f"{where}dampening and freezing against baseline", plain)
    runs = [run for comparison in comparisons.values() for run in comparison.runs]
    completed = [run.outcome for run in runs if run.outcome != "incomplete"]
    collapsed = completed.count("collapsed")
    yield f"- {collapsed or 'None'} of {len(completed)} runs collapsed."
    yield ""


def _cases(what: str, found: Sequence[tuple[Group, NetEffect | PairedDifference]]) -> Iterator[str]:
    """Say in how many cases a difference is told from zero; name those that were uncorrected."""
    if not found:
        return
    cases = [one for _, one in found]
    alone = [one for one in cases if one.p_value is not None and one.p_value <= ALPHA]
    told = [one for one in cases if one.tells]
    sizes = {one.corrected.size for one in cases if one.corrected}
    means = [one.mean for one in cases]
    yield (
        f"- {what}: of {formatting.count(len(cases), 'case')} {_sides(told)}, corrected over "
        f"{' and '.join(map(str, sorted(sizes))) or 'none'}; by intervals alone {_sides(alone)}. "
        f"Means from {formatting.signed(min(means))} to {formatting.signed(max(means))}."
    )
    for group, one in found:
        if one in alone:
            mean, interval = formatting.signed(one.mean), formatting.interval(one.interval)
            p = formatting.p_value(one.corrected.p_value) if one.corrected else "open: collapses"
            yield f"  - {one.method} at {_setting(group)}: {mean} {interval}, corrected {p}"


def _sides(cases: Sequence[NetEffect | PairedDifference]) -> str:
    above = sum(one.mean > 0 for one in cases)
    return f"{above} above zero and {len(cases) - above} below"


def _by_seed(comparison: Comparison, group: Group) -> str:
    runs = [run for run in comparison.runs if group.name in run.groups]
    seeds = sorted({run.seed for run in runs})
    found = {(run.method, run.seed): run.final_value for run in runs}
    return table(
        ["method", *(f"seed {seed}" for seed in seeds)],
        [
            [
                one.method,
                *(
                    formatting.MISSING if value is None else f"{value:.5f}"
                    for value in (found.get((one.method, seed)) for seed in seeds)
                ),
            ]
            for one in group.methods
        ],
    )


def _schedule(comparison: Comparison, title: str) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    for group in comparison.groups:
        yield f"#### {_setting(group)}"
        yield ""
        if group.fp32_value:
            checkpoint = formatting.value(group.fp32_value.mean)
            yield f"The FP32 checkpoint scores {checkpoint}."
            yield ""
        yield table(
            [
                *("method", "mAP 50-95", "spread", "of FP32"),
                *("against baseline", "oscillating", "BN drift, nats"),
            ],
            [_row(method, group) for method in group.methods],
        )
        yield ""
        if group.against_post_training:
            yield f"{group.against_post_training.sentence}."
            yield ""
        yield table(
            ["gain", "of the method", "of its control", "net", "interval"],
            [_net(effect) for effect in group.net_effects],
        )
        yield ""
        yield from (f"- {effect.sentence}." for effect in group.net_effects)
        yield ""


def _row(method: MethodEntry, group: Group) -> list[str]:
    against = next(
        (
            f"{formatting.signed(d.mean)} {formatting.interval(d.interval)}"
            for d in group.differences
            if (d.method, d.reference) == (method.method, "baseline")
        ),
        "",
    )
    final = method.final_value
    control = " (control)" if method.role == "control" else ""
    return [
        f"{method.method}{control}",
        formatting.value(mean_of(final)),
        formatting.value(final.deviation if final else None),
        share_of_fp32(method),
        against,
        formatting.percent(mean_of(method.oscillating)),
        formatting.divergence(mean_of(method.batchnorm_drift)),
    ]


def _net(effect: NetEffect) -> list[str]:
    return [
        f"{effect.method} over {effect.reference}, net of {effect.control}",
        formatting.signed(effect.gain),
        formatting.signed(effect.control_gain),
        formatting.signed(effect.mean),
        formatting.interval(effect.interval),
    ]


def _setting(group: Group) -> str:
    """Name a precision; scales are learned in all of them and start as the preset says."""
    return group.precision.replace(" learned", "").removesuffix(" from max shifted")


def _cost(cost: Cost) -> Iterable[str]:
    yield "### What it took"
    yield ""
    took, trainings, apart = (
        formatting.duration(3600 * hours)
        for hours in (cost.hours, cost.training_hours, cost.apart_hours)
    )
    yield (
        f"{cost.runs} runs on {cost.trainings} trainings, {took} of process time with {cost.jobs} "
        f"processes at a time. The trainings took {trainings} of it; one for each method would "
        f"have been {cost.apart} trainings and {apart}, "
        f"{cost.apart_hours / cost.training_hours:.1f} times as long."
    )
    yield ""
