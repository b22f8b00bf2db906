"""``distill``: the FP32 checkpoint teaches the training that starts from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from qatval.core.method_record import MethodRecord, TeacherRecord
from qatval.quant.methods.part import Effect, Part, Training, trained_with

if TYPE_CHECKING:
    from qatval.quant.methods import Method


@dataclass(frozen=True)
class Teacher(Part):
    """A teacher; see `qatval.train.distillation`.

    Attributes:
        weight: Of the distance from the teacher's answers.
        task: Of the detection loss beside it.
        hold_statistics: Whether BatchNorm keeps the statistics that it starts with and normalises
            by them in training too, as the teacher does, so that both compute the same function.
    """

    weight: float
    task: float
    hold_statistics: bool

    kind = "teacher"
    works_in_float = True

    def training(self, before: Training | None) -> Training:
        """Return the training with this teacher."""
        return trained_with(before, teacher=self)

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record how the teacher teaches."""
        taught = TeacherRecord(self.weight, self.task, self.hold_statistics)
        return msgspec.structs.replace(record, teacher=taught)

    def controls(self, method: Method) -> list[str]:
        """Return FP32 taught by itself."""
        return [method.up_to(self).in_float().name]

    def effects(self, method: Method) -> list[Effect]:
        """Return the gain of being taught, against what FP32 gains when it teaches itself."""
        control = method.in_float()
        return [
            Effect(
                "teacher",
                (method.name, method.without(self.name).name),
                (control.name, control.without(self.name).name),
                what="the teacher",
                target=" for the quantized model",
                control_does="taught by itself FP32",
                control_is="FP32 taught by itself",
            )
        ]
