"""``ptq``: the checkpoint with quantized weights, not trained. A control."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from qatval.core.method_record import MethodRecord
from qatval.quant.methods.part import Part, Training


@dataclass(frozen=True)
class Untrained(Part):
    """No training at all."""

    kind = "untrained"
    is_control = True

    def training(self, before: Training | None) -> None:
        """Return None: nothing is trained."""
        return

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record that nothing is trained."""
        return msgspec.structs.replace(record, training="none")
