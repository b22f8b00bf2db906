"""The plan of a training and its result, one JSON file each in its work directory.

Ultralytics starts a multi-GPU training again in worker processes, which know nothing but that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from qatval.core.errors import QatvalError, quoted
from qatval.core.files import atomic_write
from qatval.core.measurements import EpochRecord, Oscillation
from qatval.core.presets import BatchNorm
from qatval.core.quantization import Quantization
from qatval.quant.methods import implementations
from qatval.quant.methods.averaging import Averaging
from qatval.quant.methods.part import Weights
from qatval.quant.methods.stabilizer import StabilizerPart
from qatval.quant.methods.teacher import Teacher

SHARED_FILES = ("args.yaml", "oscillation.csv", "oscillation_layers.csv")
"""What a training leaves for all of its methods."""

OWN_FILES = ("results.csv", "tensorboard", "weights")
"""What it leaves for those of one kind of weights."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training that Ultralytics' arguments cannot say.

    Attributes:
        subset: Directory of the subset in the cache.
        architecture: Ultralytics' model file.
        checkpoint: Checkpoint to start from, FP32 or with its quantizers already inserted, or None
            to start from scratch.
        quantization: Fake quantization of the model, or None to train in float.
        averaging: How the ``ema`` weights are averaged.
        scored: Which weights to score after every epoch. Both are always saved.
        threads: CPU threads of torch; results depend on it in the fifth decimal.
        fused: Whether all weights are fake-quantized at once instead of layer by layer.
        stabilizers: What takes part in the gradient steps.
        track: Whether the oscillation of the weights is measured.
        teacher: How the FP32 checkpoint teaches, None if it does not.
        batchnorm: What statistics the model is scored and saved with.
        reference: The FP32 checkpoint, for a teacher and for anchored statistics.
        start_value: mAP 50-95 of what the training starts from, None where it is not known: that
            too can be what it falls from.
        fp32_value: Of the FP32 checkpoint on the same images, None where it is not known: what is
            next to nothing of it is nothing that falls.
    """

    subset: str
    architecture: str
    checkpoint: str | None
    quantization: Quantization | None
    averaging: Averaging
    scored: tuple[Weights, ...]
    threads: int
    fused: bool = True
    stabilizers: tuple[StabilizerPart, ...] = ()
    track: bool = False
    teacher: Teacher | None = None
    batchnorm: BatchNorm = "running"
    reference: str | None = None
    start_value: float | None = None
    fp32_value: float | None = None


@dataclass(frozen=True)
class Trajectory:
    """What a training left behind.

    Attributes:
        history: Epochs of all weights that were scored.
        steps: Optimizer steps taken.
        decay, tau: Of the average.
        effective_decay: Decay of the last step.
        amp: Whether automatic mixed precision was really used.
        peak_memory_mb: The most memory that the training's process has had, in MiB: reserved by
            torch on a GPU, resident on a CPU; None where nobody can tell.
        stopped: Why the training ended before its last epoch, or None.
        stabilizers: What each of the plan's stabilizers says of itself, in their order.
        oscillation: How the weights oscillated, or None where nobody looked.
        directory: Holds `SHARED_FILES` and, in ``raw/`` and ``ema/``, `OWN_FILES`.
        complete: Whether the training is over, at its last epoch or where it had to stop.
    """

    history: dict[Weights, list[EpochRecord]] = field(default_factory=dict)
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
    complete: bool = False

    def checkpoint(self, weights: Weights, name: Literal["last", "best"] = "last") -> Path:
        """Return the path of the latent weights, as they are or averaged."""
        return weights_file(Path(self.directory), weights, name)

    def fallen(self, weights: Weights, epoch: int, name: Weights | Literal["best"]) -> Path:
        """Return the path of what is kept of an epoch in which weights fell, see `fallen_file`."""
        return fallen_file(Path(self.directory), weights, epoch, name)


def weights_file(folder: Path, weights: Weights, name: Literal["last", "best"]) -> Path:
    """Return where a training's folder has its latent weights, as they are or averaged."""
    return folder / weights / "weights" / f"{name}.safetensors"


def fallen_file(
    folder: Path, weights: Weights, epoch: int, name: Weights | Literal["best"]
) -> Path:
    """Return where it has those of an epoch in which weights fell, or the best until then."""
    return folder / weights / "falls" / str(epoch) / f"{name}.safetensors"


def read_trajectory(directory: Path) -> Trajectory:
    """Read the result of the training in a work directory, as far as it has got."""
    return msgspec.json.decode((directory / "trajectory.json").read_bytes(), type=Trajectory)


def finished(directory: Path) -> Trajectory | None:
    """Return the result of the training in a work directory if it is complete, else None.

    Raises:
        QatvalError: If it cannot be read.
    """
    try:
        trajectory = read_trajectory(directory)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise QatvalError(
            f"{directory / 'trajectory.json'} cannot be read: expected the result of a training "
            f"({error}); begin the run anew with --restart"
        ) from error
    return trajectory if trajectory.complete else None


def read_plan(directory: Path) -> TrainingPlan:
    """Read the plan of the training in a work directory.

    Raises:
        QatvalError: If it names a class that no installed part is.
    """
    content = (directory / "plan.json").read_bytes()
    plan = msgspec.json.decode(content, type=TrainingPlan)
    known = implementations()
    for part in plan.stabilizers:
        if part.implementation not in known:
            raise QatvalError(
                f"{directory / 'plan.json'}: expected a stabilizer of an installed package, got "
                f"{quoted(part.implementation)}; start the training anew"
            )
    return plan


def write(directory: Path, record: TrainingPlan | Trajectory) -> None:
    """Write the plan of a training, or its result, into its work directory."""
    name = "plan.json" if isinstance(record, TrainingPlan) else "trajectory.json"
    atomic_write(directory / name, msgspec.json.format(msgspec.json.encode(record)))
