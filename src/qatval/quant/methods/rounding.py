"""``gptq``: weights of an untrained checkpoint rounded by GPTQ, not to the nearest code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from qatval.core.errors import UsageError
from qatval.core.method_record import MethodRecord, RoundingRecord
from qatval.quant.methods.part import Context, Part, Training

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Rounding(Part):
    """GPTQ; see `qatval.quant.gptq`.

    Attributes:
        images: Calibration images that it looks at.
    """

    images: int

    kind = "rounding"
    changes_model = True
    stages = ("rounding",)

    def training(self, before: Training | None) -> None:
        """Refuse a training: it would round for itself."""
        if before is not None:
            raise UsageError("only a checkpoint that nothing trains is rounded; say ptq+...")

    def round(self, model: nn.Module, context: Context) -> nn.Module:
        """Return the model with weights that lie on the codes that GPTQ chooses."""
        from qatval.quant.gptq import at_most, round_by_gptq  # half a second that few runs need
        from qatval.quant.quantized_conv import quantized_layers

        context.stage("rounding", sum(1 for _ in quantized_layers(model)))
        batches = at_most(context.images.pixels(), self.images)
        return round_by_gptq(model.to(context.images.device), batches, context.step).cpu()

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record how the checkpoint is rounded."""
        return msgspec.structs.replace(
            record, rounding=RoundingRecord(images=self.images, by="gptq")
        )

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield how the checkpoint was rounded."""
        if record.rounding:
            yield f"weights rounded by GPTQ on {record.rounding.images} training images"
