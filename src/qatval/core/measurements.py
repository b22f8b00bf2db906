"""What is measured in a run, as its summary records it; see `qatval.core.summary` for the rules."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Count = Annotated[int, Meta(ge=0)]
Number = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
HalfShare = Annotated[float, Meta(ge=0, le=0.5)]
Magnitude = Annotated[float, Meta(ge=0)]


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of a summary."""


class LayerCoverage(Record, frozen=True, kw_only=True):
    """What became of one layer with weights.

    Attributes:
        name: Full name in the model.
        shape: Shape of the weight, ``(out, in / groups, height, width)``.
        bits: Width of a weight code, or None if the layer stays in float.
        scale: Granularity of the scale, or None if the layer stays in float.
        reason: Why the layer stays in float, or None if it does not.
        activation_bits: Width of a code of the layer's input, or None if that stays in float.
    """

    name: str
    shape: tuple[int, ...] | UnsetType = UNSET
    bits: int | None
    scale: str | UnsetType | None = UNSET
    reason: str | None
    activation_bits: int | UnsetType | None = UNSET


class Coverage(Record, frozen=True, kw_only=True):
    """How many layers are quantized, how many stay in float, and which."""

    quantized: Count
    exempt: Count
    max_levels_per_scale: int | UnsetType | None = UNSET
    layers: tuple[LayerCoverage, ...]


class CocoMetrics(Record, frozen=True):
    """pycocotools' view of the same detections, in [0, 1]; see `qatval.data.coco_protocol`."""

    map: float
    map50: float
    matched_map: float
    matched_difference: float
    interpolated_map: float | None = None
    tolerance: float | None = None


class Bootstrap(Record, frozen=True):
    """The final value on bootstrap resamples of the validation images."""

    seed: int
    images: Number
    values: tuple[float, ...]


class Metrics(Record, frozen=True):
    """Values of the primary metric, mAP 50-95 in [0, 1], None where they are not numbers.

    Attributes:
        fp32_value: The FP32 checkpoint on the same images.
        ptq_value: The checkpoint with rounded weights and nothing else done.
        start_value: The model at the first step; the FP32 checkpoint of a float control, the naive
            model where nothing is trained.
        map50, precision, recall: Ultralytics' of the delivered model.
        before_qc_value, before_bn_value: What the training ended with.
        best_epoch: 0 is the start.
    """

    primary_name: Literal["metrics/mAP50-95(B)"]
    best_value: float | None
    final_value: float | None
    fp32_value: float | None = None
    ptq_value: float | UnsetType | None = UNSET
    start_value: float | UnsetType | None = UNSET
    map50: float | None = None
    precision: float | None = None
    recall: float | None = None
    coco: CocoMetrics | None = None
    bootstrap: Bootstrap | None = None
    before_qc_value: float | None = None
    before_bn_value: float | None = None
    best_epoch: Count | UnsetType | None = UNSET

    def value(self, name: str) -> float | None:
        """Return the metric of this name, None where it was not measured or is no number."""
        found: float | UnsetType | None = getattr(self, name)
        return None if found is UNSET else found


TrajectoryVerdict = Literal[
    "held", "never learned", "evaluation diverged", "training diverged", "diverged"
]
"""``diverged``: no training loss tells whether the training did, or only what was evaluated."""


class Fall(Record, frozen=True, kw_only=True):
    """A stretch of epochs in which the value was below the collapse line, half of its best so far.

    Attributes:
        epoch: The first of them; None where what came after the training made the value fall.
        best, best_epoch: The best value until then; 0 is the start.
        lowest, lowest_epoch: The lowest value; None where one is not a number, and for the epoch of
            a value after the training.
        epochs: How many epochs there are.
        recovered: The epoch that is back at the line; None where none of the training is.
        repaired: Whether what came after the training brought the value back to the line.
        lost: The first epoch with less than 1 % of the best.
        loss_before: The lowest training loss from the best epoch to the fall.
        loss_then: The highest training loss of the first epoch of the fall and the next.
        loss_rose: Whether the second is clearly above the first, see `qatval.core.trajectory`;
            None where that is not known.
    """

    epoch: Number | None
    best: float
    best_epoch: Count
    lowest: float | None
    lowest_epoch: Count | None
    epochs: Count
    recovered: Number | None = None
    repaired: bool = False
    lost: Number | None = None
    loss_before: float | None = None
    loss_then: float | None = None
    loss_rose: bool | None = None

    @property
    def lasting(self) -> bool:
        """Whether it is more than a dip: one epoch that the training came back from at once."""
        return self.epochs != 1 or self.recovered is None

    @property
    def kind(self) -> TrajectoryVerdict:
        """What diverged."""
        if self.loss_rose is None:
            return "diverged"
        return "training diverged" if self.loss_rose else "evaluation diverged"


class TrajectoryRecord(Record, frozen=True):
    """The verdict on all epochs of a run, see `qatval.core.trajectory`.

    Attributes:
        loss_not_finite: The first epoch whose training loss is not a number.
    """

    verdict: TrajectoryVerdict
    falls: tuple[Fall, ...] = ()
    loss_not_finite: Count | None = None


Repaired = Literal["averaged scale", "scale", "overflow", "statistics", "average", "rounding"]
"""What can be repaired in a model that broke; see `qatval.quant.repairs`."""

Cause = Literal[Repaired, "training"]
"""What broke a model, by the repair that restores it.

``training``: no repair does, and the training loss rose or the weights are not finite.
"""


class Probe(Record, frozen=True):
    """A broken model with one thing repaired, scored again.

    Attributes:
        repaired: What was repaired.
        layer: Where, by full name, or where an overflow began; None for everywhere.
        value: mAP 50-95 on the images of the autopsy.
        restored: What of the loss that is, as a share; below 0 where the repair made it worse.
    """

    repaired: Repaired
    layer: str | None
    value: float
    restored: float


class Autopsy(Record, frozen=True, kw_only=True):
    """Why a model fell below the collapse line, as far as repairing one thing at a time tells.

    Attributes:
        epoch: Whose weights were looked at.
        images: On how many validation images each model was scored; 0 where none was, as the
            weights are not finite.
        good: mAP 50-95 on these images of the best weights before the fall.
        broken: Of the weights looked at.
        cause: What the repair that restored more than half of the loss repaired, None where none
            did and the training did not diverge either.
        layer: The one layer that it suffices to repair, or where an overflow began.
        restored: Share of the loss that is restored then.
        probes: In the order in which they were made; none where on these images less than a
            quarter of the best value is lost.
    """

    epoch: Number
    images: Count
    good: float | None = None
    broken: float | None = None
    cause: Cause | None = None
    layer: str | None = None
    restored: float | None = None
    probes: tuple[Probe, ...] = ()


class StabilityRecord(Record, frozen=True):
    """The verdict, see `qatval.core.stability`; None in a run that did not finish.

    ``trajectory`` is the verdict on all epochs; older tools made none.
    """

    collapse_threshold_ratio: Annotated[float, Meta(ge=0.5, le=0.5)]
    final_over_best_ratio: float | None
    collapsed: bool | None
    degenerate: bool | None = None
    trajectory: TrajectoryRecord | None = None


class EpochRecord(Record, frozen=True):
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        value: The primary metric, or None where it is not a number.
        metrics: Training losses, metrics, validation losses, learning rates.
        seconds: Since the training began.
    """

    epoch: Number
    value: float | None
    metrics: dict[str, float | None] | None = None
    seconds: float | None = None


class EpochOscillation(Record, frozen=True):
    """All weights in one epoch. Means are over weights.

    Attributes:
        epoch: Counted from 1.
        oscillating: Share whose oscillation frequency exceeds the threshold at the epoch's end.
        change_rate: Share whose code changes in a step, the mean of the epoch's steps.
        reversal_rate: Share whose code turns back in a step, the mean of the epoch's steps.
        near_threshold: Share within 0.05 steps of a rounding threshold at the epoch's end; 0.1 of
            weights that lie anywhere alike.
        threshold_distance: Mean distance from the nearest rounding threshold at the epoch's end,
            in steps, at most 0.5 each; 0.25 of weights that lie anywhere alike.
        scale_drift: Mean of ``|log2(scale / scale at the start)|``.
    """

    epoch: Number
    oscillating: Share
    change_rate: Share
    reversal_rate: Share
    near_threshold: Share
    threshold_distance: HalfShare
    scale_drift: Magnitude


class LayerOscillation(Record, frozen=True):
    """One layer at the end of the training. Shares and means are over its weights.

    Attributes:
        name: Full name.
        weights: How many it has.
        oscillating: Share whose oscillation frequency exceeds the threshold.
        flips: Changes of code per weight over the training.
        reversals: Changes of code back per weight over the training.
        near_threshold, threshold_distance, scale_drift: As in `EpochOscillation`.
    """

    name: str
    weights: Number
    oscillating: Share
    flips: Magnitude
    reversals: Magnitude
    near_threshold: Share
    threshold_distance: HalfShare
    scale_drift: Magnitude


class Oscillation(Record, frozen=True):
    """How the weights of a training oscillated.

    Attributes:
        momentum: Of the oscillation frequency.
        threshold: Frequency above which a weight is called oscillating.
        steps: Optimizer steps observed.
        oscillating: Share of oscillating weights at the end.
        epochs: All weights, epoch by epoch.
        layers: Every layer, at the end.
    """

    momentum: float
    threshold: float
    steps: Count
    oscillating: Share
    epochs: tuple[EpochOscillation, ...]
    layers: tuple[LayerOscillation, ...]


class LayerDrift(Record, frozen=True):
    """How far one layer's running statistics are from re-estimated ones, in nats.

    Attributes:
        name: Full name of the layer.
        kl_mean, kl_max: Mean and maximum over channels of the Kullback-Leibler divergence.
    """

    name: str
    kl_mean: float
    kl_max: float


class BatchNormDrift(Record, frozen=True):
    """The same over all layers: mean of the layers' means, largest channel and its layer."""

    images: Number
    kl_mean: float
    kl_max: float
    worst_layer: str
    layers: tuple[LayerDrift, ...]


class QcChange(Record, frozen=True):
    """How far QC moved a layer's gamma (from 1) and beta (from 0), over its channels."""

    gamma_min: float
    gamma_max: float
    gamma_mean_abs_change: float
    beta_max_abs: float


class FailedCheck(Record, frozen=True):
    """A check of the measurement that failed: its value cannot be relied on.

    Attributes:
        name: ``"reload"``, ``"protocols"``, ``"checkpoint"``, or a rule of exported files.
        detail: One line with both values and what they may differ by.
    """

    name: str
    detail: str
