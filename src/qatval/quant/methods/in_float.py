"""``fp32``: the same schedule without quantization. A control."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from qatval.core.method_record import MethodRecord
from qatval.quant.methods.part import Part, Training, trained_with


@dataclass(frozen=True)
class InFloat(Part):
    """A training in FP32."""

    kind = "in_float"
    is_control = True

    def training(self, before: Training | None) -> Training:
        """Return the training without quantization."""
        return trained_with(before, quantized=False)

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record that the training is in float."""
        return msgspec.structs.replace(record, training="float")
