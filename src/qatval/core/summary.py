"""The run summary: the typed form of ``run_summary.json``, written by one run, read by many tools.

`load_summary` takes what this and older tools wrote: only what the contract requires has no default
here. A field with the default None is written where it is known and left out where it is not; one
with the default ``UNSET`` is always written, with null where there is nothing, and only older
summaries lack it. The JSON Schema beside this module is the published form of the same and is
checked on writing; a test holds the two to each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write
from qatval.core.quantization import FLOAT_MODE
from qatval.core.schema import is_date_time, published
from qatval.core.stability import Status

SCHEMA_VERSION = "1.1"
SUMMARY_NAME = "run_summary.json"

Count = Annotated[int, Meta(ge=0)]
Number = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
HalfShare = Annotated[float, Meta(ge=0, le=0.5)]
Magnitude = Annotated[float, Meta(ge=0)]


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of a summary."""


class Git(Record, frozen=True):
    """The source revision of qatval, each None outside of a checkout."""

    commit: str | None
    branch: str | None
    dirty: bool | None


class Model(Record, frozen=True):
    """What was trained; ``imgsz`` is the side of the square network input in pixels."""

    variant: str
    checkpoint: str
    imgsz: Number
    checkpoint_sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None


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


class StartRecord(Record, frozen=True):
    """What was done between the insertion of quantizers and the first step."""

    scale: Literal["max", "mse", "lsq"]
    statistics: Literal["kept", "reestimated", "shifted"]


class QuantizationRecord(Record, frozen=True):
    """The quantization; of a float control ``mode`` is ``"fp32"`` and all else is None."""

    mode: Annotated[str, Meta(pattern="^(fp32|w[2-8]a(16|[2-8]))$")]
    library: Literal["brevitas"] | None
    weight_bit_width: int | None
    activation_bit_width: int | None
    narrow_range: bool | None = None
    scale: Literal["per-tensor", "per-channel"] | None = None
    scale_without_batchnorm: Literal["per-tensor", "per-channel"] | None = None
    scaling: Literal["learned", "statistics"] | None = None
    boundary_bit_width: Annotated[int, Meta(ge=2, le=8)] | UnsetType | None = UNSET
    start: StartRecord | None = None
    coverage: Coverage | None = None

    def __post_init__(self) -> None:
        """Refuse a mode that contradicts the bits."""
        is_float = self.mode == FLOAT_MODE
        if is_float != (self.library is None) or (is_float and self.weight_bit_width is not None):
            raise ValueError(f"library and bits do not fit mode {self.mode}")
        bits = self.weight_bit_width, self.activation_bit_width
        if self.mode == "w4a16" and bits != (4, None):
            raise ValueError(f"w4a16 has 4 and null bits, not {bits[0]} and {bits[1]}")


class EmaRecord(Record, frozen=True):
    """The moving average.

    Attributes:
        updates: Optimizer steps that it took.
        effective_decay: Decay of the last step.
        codes_differing_from_raw: Share of the weights whose code is another in the raw model.
    """

    enabled: bool
    decay: float | None
    tau: float | None
    updates: int | None = None
    effective_decay: float | None = None
    codes_differing_from_raw: Share | None = None


class QcChange(Record, frozen=True):
    """How far QC moved a layer's gamma (from 1) and beta (from 0), over its channels."""

    gamma_min: float
    gamma_max: float
    gamma_mean_abs_change: float
    beta_max_abs: float


class QcRecord(Record, frozen=True):
    """Quantization correction; ``images`` is how many it was learned on."""

    enabled: bool
    epochs: int | None
    lr: float | None
    bn_stats_fixed: bool | None
    images: int | None = None
    changes: dict[str, QcChange] | None = None


class BatchNormRecord(Record, frozen=True):
    """What becomes of the BatchNorm statistics with nothing learned, and on how many images."""

    enabled: bool
    how: Literal["kept", "reestimated", "shifted"] | None = None
    images: int | UnsetType | None = UNSET


class TeacherRecord(Record, frozen=True):
    """The FP32 checkpoint as a teacher: weights of its loss and of the detection loss."""

    weight: float
    task: float
    hold_statistics: bool


class RoundingRecord(Record, frozen=True):
    """How a checkpoint that nothing trains is rounded."""

    images: Number | None = None
    by: Literal["gptq"] | None = None


class AddedPart(Record, frozen=True):
    """A part of a method that comes from a class: its settings, and what it reported at the end."""

    implementation: str
    settings: dict[str, Any]
    report: dict[str, Any]


class MethodRecord(Record, frozen=True):
    """What was done to the training, beside it and after it.

    Attributes:
        variant: The method's name.
        training: What the method is scored on: the checkpoint as it is, an FP32 training or a
            quantized one. Older tools know only the last.
        stabilizers: What took part in the gradient steps.
        post_training: What other packages' parts did to the model afterwards.
    """

    variant: str
    ema: EmaRecord
    qc: QcRecord
    bn: BatchNormRecord | None = None
    teacher: TeacherRecord | UnsetType | None = UNSET
    rounding: RoundingRecord | UnsetType | None = UNSET
    training: Literal["none", "float", "quantized"] | None = None
    stabilizers: tuple[AddedPart, ...] | UnsetType = UNSET
    post_training: tuple[AddedPart, ...] = ()


class Requested(Record, frozen=True):
    """How many images the profile asked for, None for all."""

    train_images: int | None
    val_images: int | None


class DatasetRecord(Record, frozen=True):
    """The data; ``identity`` is what they are wherever they lie, ``name`` what that is called."""

    coco_root: str
    dataset_yaml: str
    train_images: int | None
    val_images: int | None
    requested: Requested | None = None
    name: str | None = None
    identity: dict[str, Any] | None = None


class TrainingRecord(Record, frozen=True, kw_only=True):
    """How the training was set up, and what it took.

    Attributes:
        profile: Name of the profile, None where an older tool did not record it.
        fused: Whether all weights were fake-quantized at once.
        tracked: Whether the oscillation of the weights was measured.
        batchnorm: ``"running"`` or ``"anchored"`` statistics; older tools know only the first.
        overrides: Ultralytics' arguments.
        steps: Optimizer steps; 0 where nothing was trained.
        threads: CPU threads of torch.
        trajectory: Identifies the training; equal for methods scored on one and the same, null
            where there was none.
        peak_memory_mb: The most memory that the training's process has had, in MiB: reserved by
            torch on a GPU, resident on a CPU.
        stopped: Why it ended before its last epoch.
    """

    framework: str
    profile: str | None = None
    epochs: int
    batch: int
    seed: int
    device: str
    amp: bool
    fused: bool | None = None
    tracked: bool | None = None
    batchnorm: Literal["running", "anchored"] | None = None
    overrides: dict[str, Any]
    steps: Count | None = None
    threads: int | None = None
    trajectory: str | UnsetType | None = UNSET
    peak_memory_mb: Count | UnsetType | None = UNSET
    stopped: str | None = None


class Artifacts(Record, frozen=True):
    """Where files are; relative paths are relative to the run root."""

    run_root: str
    results_csv: str | None
    tensorboard_log_dir: str | None
    val_annotations: str | None = None
    val_image_dir: str | None = None
    oscillation_csv: str | None = None
    weights: str | None = None
    predictions: str | None = None


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


class StabilityRecord(Record, frozen=True):
    """The verdict, see `qatval.core.stability`; None in a run that did not finish."""

    collapse_threshold_ratio: Annotated[float, Meta(ge=0.5, le=0.5)]
    final_over_best_ratio: float | None
    collapsed: bool | None
    degenerate: bool | None = None


class RunError(Record, frozen=True, kw_only=True):
    """Why a run is incomplete, and in which stage it was."""

    type: str | None = None
    message: str
    stage: str | None = None


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


class FailedCheck(Record, frozen=True):
    """A check of the measurement that failed: its value cannot be relied on.

    Attributes:
        name: ``"reload"`` or ``"protocols"``.
        detail: One line with both values and what they may differ by.
    """

    name: str
    detail: str


class RunSummary(Record, frozen=True):
    """One run: a variant, a method, a profile and a seed, and what came of it."""

    schema_version: Annotated[str, Meta(pattern=r"^1\.[0-9]+$")]
    run_id: Annotated[str, Meta(min_length=1)]
    created_at: str
    status: Status
    git: Git
    model: Model
    quantization: QuantizationRecord
    method: MethodRecord
    dataset: DatasetRecord
    training: TrainingRecord
    artifacts: Artifacts
    metrics: Metrics
    stability: StabilityRecord
    environment: dict[str, Any] | None = None
    configuration: dict[str, Any] | None = None
    error: RunError | None = None
    history: tuple[EpochRecord, ...] | None = None
    evaluation: dict[str, Any] | None = None
    oscillation: Oscillation | None = None
    batchnorm: BatchNormDrift | None = None
    failed_checks: tuple[FailedCheck, ...] | UnsetType = UNSET
    timings: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse a summary whose parts contradict each other."""
        if not is_date_time(self.created_at):
            raise ValueError(f"expected created_at as RFC 3339 has it, got '{self.created_at}'")
        in_float = self.quantization.mode == FLOAT_MODE
        if in_float != (self.method.variant.split("+")[0] == "fp32"):
            raise ValueError(
                f"method '{self.method.variant}' does not fit mode {self.quantization.mode}"
            )
        if self.status == "incomplete":
            if self.error is None:
                raise ValueError("an incomplete run must say why under 'error'")
        elif self.stability.collapsed is None:
            raise ValueError("a completed run must say whether it collapsed")


def write_summary(root: Path, summary: RunSummary) -> None:
    """Write ``run_summary.json`` into a run root.

    Raises:
        ValueError: If the summary breaks the schema, which is a defect of qatval.
        QatvalError: If the run root cannot be written to.
    """
    atomic_write(root / SUMMARY_NAME, published(summary, "run_summary"))


def load_summary(path: Path) -> RunSummary:
    """Read a summary that this or an older tool wrote.

    Args:
        path: The file, or the run root that holds it.

    Raises:
        QatvalError: As `read_summary` does.
    """
    return read_summary(path)[0]


def read_summary(path: Path) -> tuple[RunSummary, dict[str, Any]]:
    """Read a summary, and beside it the JSON as it is, with keys that this version does not know.

    Args:
        path: The file, or the run root that holds it.

    Raises:
        QatvalError: One line that says why the file cannot be used: missing, truncated or not
            JSON, of a newer schema version, or no run summary.
    """
    file = path / SUMMARY_NAME if path.is_dir() else path
    try:
        document = msgspec.json.decode(file.read_bytes())
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, str) and version.split(".")[0] != "1":
            raise QatvalError(f"{file} has schema version {version}, this qatval reads 1.x")
        return msgspec.convert(document, RunSummary), document
    except OSError as error:
        raise QatvalError(f"cannot read {file}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise QatvalError(f"{file} is not a run summary: {error}") from error
    except msgspec.DecodeError as error:
        raise QatvalError(f"{file} is not valid JSON ({error}): truncated?") from error
