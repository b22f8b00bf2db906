"""What a comparison tells, as it is written: collapse rates, contrasts, and how their claims stand.

A part of the document of `qatval.analysis.document`. Values are mAP 50-95 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Family = Literal["primary", "all others"]
"""Claims that are corrected together."""


class Part(msgspec.Struct, frozen=True):
    """A part of a comparison."""


class CollapseRate(Part, frozen=True):
    """How often a method collapses.

    Attributes:
        of: Completed runs, without those whose value a check disputes.
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


class Look(Part, frozen=True):
    """Which look at a series of seeds that was planned to be looked at repeatedly.

    Attributes:
        number: From 1; 0 for what is no look of the plan, and claims nothing.
        of: How many looks are planned.
        seeds: On how many seeds the primary contrast was completed.
        planned: On how many it is at most.
    """

    number: int
    of: int
    seeds: int
    planned: int


class Corrected(Part, frozen=True):
    """How a claim stands among the claims of the comparison.

    Attributes:
        family: The primary contrast, which runs declared before they started, or all others.
        size: How many contrasts the family has, one that several groups have counted once.
        choices: Among how many contrasts this one was chosen by its result.
        p_value: Of no difference, corrected over the family, and for the looks of a series.
        level: At which it is tested at least, whatever becomes of the others.
        look: None for runs that no plan of repeated looks is recorded in.
    """

    family: Family
    size: int
    choices: int
    p_value: float
    level: float
    look: Look | None


class CollapseDifference(Part, frozen=True):
    """How often two methods collapse on the seeds that both completed, disputed ones left out.

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
        half_told_as: How large half of the mean, were it the true effect, would be measured on
            average where it is told; None where it never is.
    """

    power: float
    effect: float
    seeds_share: float | None
    images_share: float | None
    target: float
    seeds_needed: int | None
    images_needed: int | None
    half_told_as: float | None


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
        mean: Over the seeds on which all runs behind it held.
        interval: At ``level``, of this contrast alone; None for one seed.
        p_value: Of the same, two-sided: it is ``1 - level`` where the interval touches 0.
        seeds: On how many seeds all runs behind it held.
        common_seeds: On how many they were completed.
        collapsed, disputed: By method, on how many of those it collapsed, or a check disputes its
            value. Where there is any, the mean is conditional and claims nothing.
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
    disputed: dict[str, int]
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
