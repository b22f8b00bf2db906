"""What a run summary says of its method: one record for each kind of part."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from qatval.core.measurements import Number, QcChange, Record, Share


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

    @property
    def afterwards(self) -> str | None:
        """What changed the model after the training, in a word or two; None for nothing."""
        if self.qc.enabled:
            return "QC"
        if self.bn is not None and self.bn.enabled:
            return "re-estimation"
        return "what came after the training" if self.post_training else None
