"""``bn`` and ``shift``: other BatchNorm statistics after the training, with nothing learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from qatval.core.errors import UsageError
from qatval.core.quantization import Statistics
from qatval.core.summary import BatchNormRecord, MethodRecord
from qatval.quant.methods.part import Context, Part, Training

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class StatisticsAfter(Part):
    """Statistics of the calibration images (``bn``), or the FP32 checkpoint's moved (``shift``).

    Attributes:
        how: ``"reestimated"``: a control of QC, see `qatval.quant.batchnorm`; ``"shifted"``: moved
            by what sets the model apart from the checkpoint, see `qatval.quant.anchoring`.
    """

    how: Statistics

    kind = "statistics"
    changes_model = True
    value_before = "before_bn_value"
    stages = ("BatchNorm statistics",)

    @classmethod
    def from_preset(cls, name: str, settings: Any) -> Part:
        """Return the part of one word."""
        return cls(name, settings)

    def as_preset(self) -> Statistics:
        """Return the one word."""
        return self.how

    @property
    def is_control(self) -> bool:
        """Fresh statistics are there to be compared with QC."""
        return self.how == "reestimated"

    @property
    def works_in_float(self) -> bool:
        """An FP32 model can be given fresh statistics; quantization has moved none of its own."""
        return self.how == "reestimated"

    def training(self, before: Training | None) -> Training | None:
        """Return the same training: statistics are replaced after it."""
        if self.how == "shifted" and before is not None and not before.quantized:
            raise UsageError(
                "statistics are shifted by what quantization changes, and an FP32 training has none"
            )
        return before

    def check(self, others: Sequence[Part]) -> None:
        """Refuse a second kind of statistics."""
        if any(isinstance(other, StatisticsAfter) for other in others):
            raise UsageError("statistics cannot become two things")

    def after(
        self, model: nn.Module, context: Context, record: MethodRecord
    ) -> tuple[nn.Module, MethodRecord]:
        """Return the model with other statistics."""
        from qatval.quant.anchoring import shift_statistics

        context.stage("BatchNorm statistics")
        images = context.images
        if self.how == "reestimated":
            model = context.reestimated()
        else:
            copy = deepcopy(model).to(images.device)
            model = shift_statistics(copy, context.reference, images.pixels).cpu()
        bn = BatchNormRecord(True, self.how, images.count)
        return model, msgspec.structs.replace(record, bn=bn)

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record what the statistics will become."""
        return msgspec.structs.replace(record, bn=BatchNormRecord(True, self.how, None))

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield what became of the statistics, and on how many images."""
        if record.bn and record.bn.enabled:
            images = f" on {record.bn.images} training images" if record.bn.images else ""
            shifted = record.bn.how == "shifted"
            how = "moved by what quantization changes" if shifted else "re-estimated"
            yield f"BatchNorm statistics {how}{images}, nothing learned"
