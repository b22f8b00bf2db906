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

from qatval.core.bounded_json import UnfitJsonError, decode_bounded
from qatval.core.deployment import DeploymentRecord
from qatval.core.digests import FileDigest, read_digested, write_digested
from qatval.core.errors import QatvalError
from qatval.core.files import encoded
from qatval.core.formatting import printable
from qatval.core.measurements import (
    Autopsy,
    BatchNormDrift,
    Count,
    Coverage,
    EpochRecord,
    FailedCheck,
    Magnitude,
    Metrics,
    Number,
    Oscillation,
    Record,
    Share,
    StabilityRecord,
)
from qatval.core.method_record import MethodRecord
from qatval.core.quantization import FLOAT_MODE
from qatval.core.schema import is_date_time, published
from qatval.core.stability import Status

SCHEMA_VERSION = "1.1"
SUMMARY_NAME = "run_summary.json"
LOG_NAME = "ultralytics.log"
"""What Ultralytics said; the runs of one command go on writing to it after one has finished."""

# Thirty times what a run writes. What is decoded takes up to forty times the room.
_MOST_BYTES = 4 * 2**20
_REASON = 300  # characters of why a summary is refused, which may quote it


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


class Resumption(Record, frozen=True):
    """A time that an interrupted run went on.

    Attributes:
        at: When, as ``created_at``.
        stage: In which stage it had been interrupted, None where nobody recorded it.
        steps: Optimizer steps that its training had behind it, None where none was under way.
    """

    at: str
    stage: str | None = None
    steps: Count | None = None

    def __post_init__(self) -> None:
        """Refuse a time that is none."""
        _refuse_other_than_time("resumed.at", self.at)


class PrimaryContrast(Record, frozen=True):
    """The two methods whose difference the runs are made to tell."""

    method: Annotated[str, Meta(min_length=1)]
    reference: Annotated[str, Meta(min_length=1)]


class SeriesPlan(Record, frozen=True):
    """How a series of seeds was to be told, decided before its first run.

    Attributes:
        seeds: In the order in which they are run, until the primary contrast is told.
        levels: Of the p-value, two-sided, at each look: the last after all seeds, the one before
            after all but one, and so on.
        margin: By which the method must not be worse than its reference, in mAP; None for not
            tested.
    """

    seeds: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=1000)]
    levels: Annotated[
        tuple[Annotated[float, Meta(gt=0, lt=1)], ...], Meta(min_length=1, max_length=1000)
    ]
    margin: Annotated[float, Meta(gt=0, lt=1)] | None = None


class RunSummary(Record, frozen=True):
    """One run: a variant, a method, a profile and a seed, and what came of it.

    Attributes:
        files: All that the finished run left in its root but this summary and its log, which other
            runs of the same command still write to; by name relative to the root, with /.
        primary: What it was declared to tell before it started; older tools declared nothing.
        series: The plan of the series that it is one run of, None where it was run for itself.
        autopsies: Of the epochs in which it fell, and of its last one if it is below the line.
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
    series: SeriesPlan | None = None
    timings: dict[str, Magnitude] | None = None
    resumed: tuple[Resumption, ...] = ()
    files: dict[str, FileDigest] | None = None
    deployment: DeploymentRecord | None = None
    autopsies: tuple[Autopsy, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a summary whose parts contradict each other."""
        _refuse_other_than_time("created_at", self.created_at)
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


def _refuse_other_than_time(field: str, value: str) -> None:
    if not is_date_time(value):
        raise ValueError(f"expected {field} as RFC 3339 has it, got '{value}'")


def write_summary(root: Path, summary: RunSummary) -> None:
    """Write ``run_summary.json`` and its digest into a run root.

    Raises:
        ValueError: If the summary breaks the schema, which is a defect of qatval.
        QatvalError: If the run root cannot be written to.
    """
    write_digested(root / SUMMARY_NAME, encoded(published(summary, "run_summary")))


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
        QatvalError: One line that says why the file cannot be used: missing, too large, truncated
            or not JSON, of a newer schema version, or no run summary.
    """
    return read_verified(path / SUMMARY_NAME if path.is_dir() else path)[:2]


def read_verified(file: Path) -> tuple[RunSummary, dict[str, Any], bool | None]:
    """Read a summary as `read_summary` does, and say whether the digest beside it fits.

    Returns:
        What `read_summary` returns, and as third None where there is no digest.

    Raises:
        QatvalError: As `read_summary` does.
    """
    content, fits = read_digested(file, _MOST_BYTES)
    try:
        document = decode_bounded(content)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, str) and version.split(".")[0] != "1":
            raise UnfitJsonError(f"has schema version {version:.20}, this qatval reads 1.x")
        return msgspec.convert(document, RunSummary), document, fits
    except (UnfitJsonError, msgspec.ValidationError) as error:
        what = "" if isinstance(error, UnfitJsonError) else "is not a run summary: "
        why = printable(f"{what}{error}")
        changed = "; it was changed after the run wrote it" if fits is False else ""
        raise QatvalError(f"{file} {why:.{_REASON}}{changed}") from error
