"""``bn`` and ``shift``: other BatchNorm statistics after the training, with nothing learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec

from qatval.core.errors import UsageError
from qatval.core.method_record import BatchNormRecord, MethodRecord
from qatval.core.quantization import Statistics
from qatval.quant.methods.part import Context, Part, Training

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OtherStatistics(Part):
    """Statistics that replace those of the training; its kind is how summaries call them."""

    kind: ClassVar[Statistics]
    said: ClassVar[str]
    """What reports say became of the statistics."""
    changes_model = True
    value_before = "before_bn_value"
    stages = ("BatchNorm statistics",)

    def check(self, others: Sequence[Part]) -> None:
        """Refuse a second kind of statistics."""
        if any(isinstance(other, OtherStatistics) for other in others):
            raise UsageError("statistics cannot become two things")

    def after(
        self, model: nn.Module, context: Context, record: MethodRecord
    ) -> tuple[nn.Module, MethodRecord]:
        """Return the model with other statistics."""
        context.stage("BatchNorm statistics")
        bn = BatchNormRecord(True, self.kind, context.images.count)
        return self.replaced(model, context), msgspec.structs.replace(record, bn=bn)

    def replaced(self, model: nn.Module, context: Context) -> nn.Module:
        """Return the model with these statistics."""
        raise NotImplementedError

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record what the statistics will become."""
        return msgspec.structs.replace(record, bn=BatchNormRecord(True, self.kind, None))

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield what became of the statistics, and on how many images."""
        # Older tools know one kind and record no name of it.
        if record.bn and record.bn.enabled and (record.bn.how or "reestimated") == cls.kind:
            images = f" on {record.bn.images} training images" if record.bn.images else ""
            yield f"BatchNorm statistics {cls.said}{images}, nothing learned"


@dataclass(frozen=True)
class Reestimated(OtherStatistics):
    """``bn``: those of the calibration images, see `qatval.quant.batchnorm`; a control of QC."""

    kind = "reestimated"
    said = "re-estimated"
    is_control = True
    works_in_float = True

    def replaced(self, model: nn.Module, context: Context) -> nn.Module:
        """Return the model with fresh statistics."""
        return context.reestimated()


@dataclass(frozen=True)
class Shifted(OtherStatistics):
    """``shift``: the FP32 checkpoint's, moved by what sets the model apart from it.

    See `qatval.quant.anchoring`.
    """

    kind = "shifted"
    said = "moved by what quantization changes"

    def training(self, before: Training | None) -> Training | None:
        """Return the same training, unless it is one in FP32."""
        if before is not None and not before.quantized:
            raise UsageError(
                "statistics are shifted by what quantization changes, and an FP32 training has none"
            )
        return before

    def replaced(self, model: nn.Module, context: Context) -> nn.Module:
        """Return the model with shifted statistics."""
        from qatval.quant.anchoring import shift_statistics

        copy = deepcopy(model).to(context.images.device)
        return shift_statistics(copy, context.reference, context.images.pixels).cpu()
