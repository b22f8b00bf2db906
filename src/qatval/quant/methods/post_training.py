"""What other packages do to a model after its training.

A package's own class subclasses `PostTraining`; its preset names the class. ARCHITECTURE.md shows a
whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from qatval.core.method_record import AddedPart, MethodRecord
from qatval.quant.methods.part import ClassPart, Context
from qatval.quant.methods.stabilizer import described

if TYPE_CHECKING:
    from torch import nn


class PostTraining:
    """Changes a model after its training; subclasses take their settings as keyword arguments."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Return the model to deliver.

        Args:
            model: A copy, yours to change, on the CPU. Its quantized layers are
                `qatval.quant.integer.IntegerConv2d` and must keep integer codes.
            context: Calibration images, the FP32 checkpoint, and what the run is about.
        """
        raise NotImplementedError

    def report(self) -> dict[str, float]:
        """Return numbers worth recording of what was done, by name."""
        return {}


@dataclass(frozen=True)
class PostTrainingPart(ClassPart):
    """A subclass of `PostTraining`."""

    kind = "post_training"
    changes_model = True
    stages = ("post-training",)

    def after(
        self, model: nn.Module, context: Context, record: MethodRecord
    ) -> tuple[nn.Module, MethodRecord]:
        """Return what the class makes of a copy of the model."""
        from copy import deepcopy

        context.stage("post-training")
        made: PostTraining = self.load(PostTraining)
        model = made.apply(deepcopy(model), context)
        done = AddedPart(self.implementation, dict(self.settings), made.report())
        return model, msgspec.structs.replace(record, post_training=(*record.post_training, done))

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield each class with its settings and what it reported."""
        return map(described, record.post_training)
