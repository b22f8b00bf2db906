"""What a training is told and what it leaves: two files in its work directory.

Ultralytics starts a multi-GPU training again in worker processes, which know nothing but the
directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from qatval.core.presets import BatchNorm
from qatval.core.quantization import Quantization
from qatval.core.summary import atomic_write
from qatval.quant.methods import Arm, Averaging, Stabilizer, Teacher
from qatval.quant.oscillation import Oscillation


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training that Ultralytics' arguments cannot say.

    Attributes:
        subset: Directory of the subset in the cache.
        architecture: Ultralytics' model file.
        checkpoint: Checkpoint to start from, FP32 or with its quantizers already inserted, or None
            to start from scratch.
        quantization: Fake quantization of the model, or None to train in float.
        averaging: How the ``ema`` arm averages.
        arms: Arms to score after every epoch. Both are always saved.
        threads: CPU threads of torch; results depend on it in the fifth decimal.
        fused: Whether all weights are fake-quantized at once instead of layer by layer.
        stabilizers: What takes part in the gradient steps.
        track: Whether the oscillation of the weights is measured.
        teacher: How the FP32 checkpoint teaches, None if it does not.
        batchnorm: What statistics the model is scored and saved with.
        reference: The FP32 checkpoint, for a teacher and for anchored statistics.
    """

    subset: str
    architecture: str
    checkpoint: str | None
    quantization: Quantization | None
    averaging: Averaging
    arms: tuple[Arm, ...]
    threads: int
    fused: bool = True
    stabilizers: tuple[Stabilizer, ...] = ()
    track: bool = False
    teacher: Teacher | None = None
    batchnorm: BatchNorm = "running"
    reference: str | None = None


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one arm.

    Attributes:
        epoch: Counted from 1.
        value: The primary metric, or None where it is not a number.
        metrics: Training losses, metrics, validation losses, learning rates.
        seconds: Since the training began.
    """

    epoch: int
    value: float | None
    metrics: dict[str, float | None]
    seconds: float


@dataclass(frozen=True)
class Trajectory:
    """What a training left behind.

    Attributes:
        history: Epochs of each scored arm.
        steps: Optimizer steps taken.
        decay, tau: Of the ``ema`` arm.
        effective_decay: Decay of the last step.
        amp: Whether automatic mixed precision was really used.
        peak_memory_mb: The most memory that the training's process has had, in MiB: reserved by
            torch on a GPU, resident on a CPU; None where nobody can tell.
        stopped: Why the training ended before its last epoch, or None.
        stabilizers: What each of the plan's stabilizers says of itself, in their order.
        oscillation: How the weights oscillated, or None where nobody looked.
        directory: Holds ``args.yaml``, ``oscillation*.csv`` and, per arm, ``<arm>/results.csv``,
            ``<arm>/tensorboard/`` and ``<arm>/weights/{last,best}.safetensors``.
    """

    history: dict[Arm, list[EpochRecord]] = field(default_factory=dict)
    steps: int = 0
    decay: float = 0.0
    tau: float = 0.0
    effective_decay: float = 0.0
    amp: bool = False
    peak_memory_mb: int | None = None
    stopped: str | None = None
    stabilizers: list[dict[str, float]] = field(default_factory=list)
    oscillation: Oscillation | None = None
    directory: str = ""

    def weights(self, arm: Arm, name: Literal["last", "best"] = "last") -> Path:
        """Return the path of an arm's latent weights."""
        return Path(self.directory) / arm / "weights" / f"{name}.safetensors"


def read_trajectory(directory: Path) -> Trajectory:
    """Return what a training has left in its work directory so far."""
    return msgspec.json.decode((directory / "trajectory.json").read_bytes(), type=Trajectory)


def read_plan(directory: Path) -> TrainingPlan:
    """Return what the training in a work directory is told."""
    return msgspec.json.decode((directory / "plan.json").read_bytes(), type=TrainingPlan)


def write_plan(directory: Path, plan: TrainingPlan) -> None:
    """Tell the training in a work directory what to do."""
    _write_json(directory / "plan.json", plan)


def write_trajectory(directory: Path, trajectory: Trajectory) -> None:
    """Leave what a training has come to."""
    _write_json(directory / "trajectory.json", trajectory)


def append_csv(path: Path, rows: Sequence[Mapping[str, float | str]]) -> None:
    """Append rows to a table, with a header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if path.exists() else [",".join(rows[0])]
    for row in rows:
        cells = (v if isinstance(v, str) else f"{v:.6g}" for v in row.values())
        lines.append(",".join(cells))
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")


def _write_json(path: Path, value: Any) -> None:
    atomic_write(path, msgspec.json.format(msgspec.json.encode(value)))
