"""The comparison as it is written: the typed form of ``comparison.json``.

Field for field what ``comparison.schema.json`` publishes; every report renders it. Values are mAP
50-95 in [0, 1].
"""

from __future__ import annotations

from typing import Any, Literal

from qatval.analysis.claims import (
    AgainstPostTraining,
    CollapseDifference,
    CollapseRate,
    Look,
    NetEffect,
    NotNet,
    PairedDifference,
    Part,
)
from qatval.analysis.rules import Result
from qatval.analysis.runs import Outcome
from qatval.core.deployment import RuntimeName, WeightStorage
from qatval.core.measurements import FailedCheck
from qatval.core.stability import Status

Role = Literal["method", "control"]


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
        course: What became of it epoch by epoch and why, in words; None where it simply held, or
            no epochs are recorded.
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
    course: str | None
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


class DeliveredFile(Part, frozen=True):
    """The file that is delivered.

    Attributes:
        kind: The exported file, or the weights of a run that exported nothing.
        weights: How quantized weights lie in an exported file; None in others, and for several.
        bytes: Its size, mean over runs.
        share_of_fp32: Its size over that of the FP32 checkpoint exported alike, mean over runs.
    """

    kind: Literal["onnx", "safetensors"]
    weights: WeightStorage | None
    bytes: int
    share_of_fp32: float | None


class RuntimeCost(Part, frozen=True):
    """What exported files take that were measured alike: in one runtime, on one processor.

    Attributes:
        threads: That the runtime was given.
        cpu: Where it was measured, None where that is not recorded.
        weights: How the files have their quantized weights.
        runs: Of how many the files were measured.
        median_ms: Latency of one image, the median of the runs' medians.
        low_ms, high_ms: From the lowest lower to the highest upper quartile of a run.
        resident_mb: The most memory, in MiB, that a process took which loaded the file and ran it;
            None where the system does not tell.
        executed: As in `qatval.core.deployment.RuntimeRecord`.
    """

    name: RuntimeName
    version: str
    threads: int
    cpu: str | None
    weights: WeightStorage
    runs: int
    median_ms: float
    low_ms: float
    high_ms: float
    resident_mb: int | None
    executed: dict[str, int]


class MethodCost(Part, frozen=True):
    """What a method costs, beside what it reaches.

    Attributes:
        runs: Completed ones.
        collapsed: Of them those that ended with nothing to compare, which ``final_value`` holds
            too, as that of `MethodEntry` does.
        minutes: What one model takes to make, see `qatval.analysis.costs.minutes_to_make`.
        training_shared_with: Methods that were read off the same trainings.
    """

    method: str
    runs: int
    collapsed: int
    final_value: Spread | None
    share_of_fp32: Spread | None
    minutes: float | None
    training_shared_with: list[str]
    file: DeliveredFile | None
    runtimes: list[RuntimeCost]


class Fp32Cost(Part, frozen=True):
    """The FP32 checkpoint, exported and measured as the methods were."""

    file: DeliveredFile
    runtimes: list[RuntimeCost]


class Costs(Part, frozen=True):
    """What the methods of a group cost.

    Attributes:
        fp32: None where nothing was exported.
        notes: Sentences without which the numbers mislead: whose training is counted, in what
            precision runtimes computed.
    """

    methods: list[MethodCost]
    fp32: Fp32Cost | None
    notes: list[str]


class Primary(Part, frozen=True):
    """The contrast that a group's runs declared before they started."""

    method: str
    reference: str


class Group(Part, frozen=True):
    """Comparable runs.

    Attributes:
        precision: Their quantization as one string.
        primary: None where its runs declared none, or not the same one.
        look: At the series that its runs were planned as; None without a plan.
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
    look: Look | None
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
    costs: Costs
    net_effects: list[NetEffect]
    not_net: NotNet | None
    against_post_training: AgainstPostTraining | None
    differences: list[PairedDifference]


class UnmetCriterion(Part, frozen=True):
    """A criterion that keeps the gate closed, and the ids of the runs that it is about.

    ``variant`` is empty where it is about evidence that cannot be used, of whatever it may be.
    """

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
