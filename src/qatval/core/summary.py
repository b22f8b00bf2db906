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
from qatval.core.measurements import (
    BatchNormDrift,
    Count,
    Coverage,
    EpochRecord,
    FailedCheck,
    Metrics,
    Number,
    Oscillation,
    Record,
    Share,
    StabilityRecord,
)
from qatval.core.quantization import FLOAT_MODE
from qatval.core.schema import is_date_time, published
from qatval.core.stability import Status

SCHEMA_VERSION = "1.1"
SUMMARY_NAME = "run_summary.json"


class Git(Record, frozen=True):
    """The source revision of qatval, each None outside of a checkout."""

    commit: str | None
    branch: str | None
    dirty: bool | None


class ClassesRecord(Record, frozen=True):
    """How the dataset's classes were found in the checkpoint.

    Attributes:
        match: In the ``"same"`` order, ``"mapped"`` by name from another one, or ``"unknown"``: one
            of the two has no names.
        rows: By the dataset's class index the checkpoint's, where they were mapped.
        renamed: The dataset's name -> the checkpoint's, where they are written differently.
    """

    match: Literal["same", "mapped", "unknown"]
    rows: tuple[int, ...] | None = None
    renamed: dict[str, str] | None = None


class Model(Record, frozen=True):
    """What was trained; ``imgsz`` is the side of the square network input in pixels."""

    variant: str
    checkpoint: str
    imgsz: Number
    checkpoint_sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    classes: ClassesRecord | None = None


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
    """The data.

    Attributes:
        identity: What they are, wherever they lie.
        name: What that is called.
        counts: For each split, what became of its annotations.
        worrying_share: From which share of dropped and cut ones on the run was warned of them.
        unlabelled: Of each split the classes that its annotation file has no annotation of.
    """

    coco_root: str
    dataset_yaml: str
    train_images: int | None
    val_images: int | None
    requested: Requested | None = None
    name: str | None = None
    identity: dict[str, Any] | None = None
    counts: dict[str, dict[str, Count]] | None = None
    worrying_share: Share | None = None
    unlabelled: dict[str, tuple[str, ...]] | None = None


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


class RunError(Record, frozen=True, kw_only=True):
    """Why a run is incomplete, and in which stage it was."""

    type: str | None = None
    message: str
    stage: str | None = None


class PrimaryContrast(Record, frozen=True):
    """The two methods whose difference the runs are made to tell."""

    method: Annotated[str, Meta(min_length=1)]
    reference: Annotated[str, Meta(min_length=1)]


class RunSummary(Record, frozen=True):
    """One run: a variant, a method, a profile and a seed, and what came of it.

    Attributes:
        primary: What it was declared to tell before it started; older tools declared nothing.
    """

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
    warnings: tuple[str, ...] = ()
    primary: PrimaryContrast | None = None
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
