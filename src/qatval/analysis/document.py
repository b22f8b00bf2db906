"""The comparison as it is written: the typed form of ``comparison.json``.

Field for field what ``comparison.schema.json`` publishes; every report renders it. Values are mAP
50-95 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from qatval.analysis.rules import Result
from qatval.analysis.runs import Outcome
from qatval.core.measurements import FailedCheck
from qatval.core.stability import Status

Role = Literal["method", "control"]
Family = Literal["primary", "all others"]


class Part(msgspec.Struct, frozen=True):
    """A part of a comparison."""


class Spread(Part, frozen=True):
    """Repeated values of one quantity, in its own unit; ``deviation`` is the sample's, n - 1."""

    count: int
    mean: float
    deviation: float | None
    min: float
    max: float


class Reference(Part, frozen=True):
    """How a run stands to what is recorded for its scenario."""

    result: Result
    detail: str


class RunEntry(Part, frozen=True):
    """A run: what it was and what came of it.

    Attributes:
        group, groups: The first, and all, of the groups of comparable runs that it is in.
        mode: Its quantization, ``"fp32"`` for a float control.
        share_of_fp32: Final value over the FP32 checkpoint's on the same images.
        reference: None for an incomplete run.
        error: Why it is incomplete, on one line.
    """

    run_id: str
    root: str
    group: str
    groups: list[str]
    variant: str
    method: str
    role: Role
    mode: str
    seed: int
    profile: str | None
    trajectory: str | None
    created_at: str
    status: Status
    outcome: Outcome
    best_value: float | None
    final_value: float | None
    final_over_best_ratio: float | None
    fp32_value: float | None
    ptq_value: float | None
    start_value: float | None
    share_of_fp32: float | None
    failed_checks: list[FailedCheck]
    before_qc_value: float | None
    before_bn_value: float | None
    reference: Reference | None
    error: str | None


class Difference(Part, frozen=True):
    """A condition in which two groups differ."""

    field: str
    value: Any
    other: Any


class Varying(Part, frozen=True):
    """What differs between a group's runs without making them incomparable."""

    field: str
    values: list[str]


class ReferenceCount(Part, frozen=True):
    """How many runs of a group have one result against their references, as a sentence."""

    result: Result
    sentence: str


class Robust(Part, frozen=True):
    """Summaries of final values that one bad run does not move; a run that diverged counts as 0."""

    median: float
    interquartile_mean: float


class MethodEntry(Part, frozen=True):
    """A method's runs in a group.

    Attributes:
        outcomes_agree: None below two completed runs.
        oscillating: Share of weights that oscillate at the end of the training.
        batchnorm_drift: Mean divergence of the running BatchNorm statistics, in nats.
    """

    method: str
    role: Role
    runs: int
    completed: int
    collapsed: int
    degenerate: int
    disputed: int
    incomplete: int
    outcomes_agree: bool | None
    seeds: list[int]
    final_value: Spread | None
    robust: Robust | None
    share_of_fp32: Spread | None
    oscillating: Spread | None
    batchnorm_drift: Spread | None


class CollapseRate(Part, frozen=True):
    """How often a method collapses.

    Attributes:
        of: Completed runs.
        collapsed: Of them those that ended with nothing to compare: collapsed, diverged, or never
            worth anything.
        diverged: Of those the ones whose final value is no number.
        interval: Clopper and Pearson's of the rate, two-sided, 95 %.
    """

    method: str
    collapsed: int
    of: int
    diverged: int
    interval: tuple[float, float]
    sentence: str


class Corrected(Part, frozen=True):
    """How a claim stands among the claims of the comparison.

    Attributes:
        family: The primary contrast, which runs declared before they started, or all others.
        size: How many contrasts the family has.
        choices: Among how many contrasts this one was chosen by its result.
        p_value: Of no difference, corrected over the family.
        level: At which it is tested at least, whatever becomes of the others.
    """

    family: Family
    size: int
    choices: int
    p_value: float
    level: float


class CollapseDifference(Part, frozen=True):
    """How often two methods collapse on the seeds that both completed.

    Attributes:
        collapsed, reference_collapsed: On how many seeds.
        method_alone, reference_alone: On how many seeds one of the two alone collapsed.
        p_value: McNemar's exact one, not corrected.
        tells: Whether the corrected p-value is 5 % or less.
        smallest_rate: What rate, against none, is found with 80 % power; None where none is.
    """

    method: str
    reference: str
    seeds: int
    collapsed: int
    reference_collapsed: int
    method_alone: int
    reference_alone: int
    p_value: float
    corrected: Corrected
    tells: bool
    smallest_rate: float | None
    sentence: str


class Power(Part, frozen=True):
    """What a contrast could have found, at the level that it is tested at.

    Attributes:
        power: The probability that is meant.
        effect: The smallest effect that is found with it.
        seeds_share, images_share: Shares of the mean's variance; None where not known.
        target: The effect that the following are for.
        seeds_needed: How many seeds find it on these images; None where no number does.
        images_needed: How many images find it with these seeds; None where no number does.
    """

    power: float
    effect: float
    seeds_share: float | None
    images_share: float | None
    target: float
    seeds_needed: int | None
    images_needed: int | None


class Equivalence(Part, frozen=True):
    """What is shown of a contrast beside a margin, by two one-sided tests.

    Attributes:
        no_worse_p_value, no_better_p_value: Of a contrast that is as far below, or above, 0 as the
            margin, or further; corrected over the family.
        no_worse, no_better: Whether that is 5 % or less; both together are equivalence.
    """

    margin: float
    no_worse_p_value: float
    no_better_p_value: float
    no_worse: bool
    no_better: bool


class SeedShare(Part, frozen=True):
    """On how many seeds a method beats another; who holds beats who collapsed.

    Attributes:
        interval: Clopper and Pearson's of wins among seeds that are no ties, two-sided, 95 %.
    """

    wins: int
    losses: int
    ties: int
    interval: tuple[float, float] | None


class Pair(Part, frozen=True):
    """A contrast on one seed, and its standard error over validation images where it is known."""

    seed: int
    difference: float
    shared_training: bool
    image_error: float | None


class NetPair(Pair, frozen=True):
    """A net effect on one seed, and the two gains that it is the difference of."""

    gain: float
    control_gain: float


class Contrast(Part, frozen=True, kw_only=True):
    """The mean of a contrast over seeds, and what it tells.

    Attributes:
        mean: Over the seeds on which no run behind it collapsed.
        interval: At ``level``, of this contrast alone; None for one seed.
        p_value: Of the same, two-sided: it is ``1 - level`` where the interval touches 0.
        seeds: On how many seeds all runs behind it held.
        common_seeds: On how many they were completed.
        collapsed: By method, on how many of those it collapsed. Where there is any, the mean is
            conditional and claims nothing.
        positive, negative: On how many seeds the contrast is above and below 0.
        corrected: None where the contrast claims nothing.
        tells: Whether the corrected p-value is 5 % or less.
        power: None where the contrast claims nothing.
        equivalence: None without a margin.
        images_resampled: Whether the interval includes the chance of the validation images.
    """

    mean: float
    interval: tuple[float, float] | None
    level: float
    p_value: float | None
    seeds: int
    common_seeds: int
    collapsed: dict[str, int]
    positive: int
    negative: int
    corrected: Corrected | None
    tells: bool
    power: Power | None
    equivalence: Equivalence | None
    shared_training: bool
    images_resampled: bool
    pairs: Sequence[Pair]
    sentence: str


class NetEffect(Contrast, frozen=True, kw_only=True):
    """What a method gains net of its control: ``(method - reference) - (control - its own)``.

    Attributes:
        kind: Of the part of the method that is judged, e.g. ``"averaging"``.
        gain, control_gain: Means over the seeds of the net effect.
    """

    kind: str
    method: str
    reference: str
    control: str
    control_reference: str
    gain: float
    control_gain: float
    pairs: list[NetPair]


class NotNet(Part, frozen=True):
    """Which gains lack a control to be net of."""

    missing: list[str]
    sentence: str


class AgainstPostTraining(Contrast, frozen=True, kw_only=True):
    """The best method that trains against the best that does not.

    Attributes:
        methods, references: Among how many each is the best.
        minutes, reference_minutes: What it took to make one such model, scores left out.
    """

    method: str
    reference: str
    methods: int
    references: int
    minutes: float | None
    reference_minutes: float | None
    beats: SeedShare | None
    pairs: list[Pair]


class PairedDifference(Contrast, frozen=True, kw_only=True):
    """Method minus reference, paired by seed."""

    method: str
    reference: str
    beats: SeedShare | None
    pairs: list[Pair]


class Primary(Part, frozen=True):
    """The contrast that a group's runs declared before they started."""

    method: str
    reference: str


class Group(Part, frozen=True):
    """Comparable runs.

    Attributes:
        precision: Their quantization as one string.
        primary: None where its runs declared none, or not the same one.
        conditions: What they agree on, float controls on all but the quantization.
        not_comparable_with: The variant's largest group, where that is another one.
        differs_in: The conditions in which it differs from that group.
    """

    name: str
    variant: str
    dataset: str | None
    profile: str | None
    precision: str
    primary: Primary | None
    conditions: dict[str, Any]
    not_comparable_with: str | None
    differs_in: list[Difference]
    varying: list[Varying]
    fp32_value: Spread | None
    ptq_value: Spread | None
    start_value: Spread | None
    references: list[ReferenceCount]
    collapse_rates: list[CollapseRate]
    collapse_differences: list[CollapseDifference]
    methods: list[MethodEntry]
    net_effects: list[NetEffect]
    not_net: NotNet | None
    against_post_training: AgainstPostTraining | None
    differences: list[PairedDifference]


class UnmetCriterion(Part, frozen=True):
    """A criterion that keeps the gate closed, and the ids of the runs that it is about."""

    variant: str
    reason: str
    runs: list[str]


class Gate(Part, frozen=True):
    """The stage gate's decision."""

    yolo10m_allowed: bool
    reasons: list[str]
    unmet: list[UnmetCriterion]


class NotRead(Part, frozen=True):
    """A path that holds no usable summary, and why."""

    path: str
    reason: str


class Comparison(Part, frozen=True):
    """Runs grouped by what makes them comparable, their differences, and the stage gate.

    Attributes:
        margin: Within which methods were tested to be alike, None for not at all.
    """

    schema_version: str
    primary_name: str
    margin: float | None
    runs: list[RunEntry]
    groups: list[Group]
    gate: Gate
    unreadable: list[NotRead]
    warnings: list[str]
