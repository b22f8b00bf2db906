"""``ptq``: the checkpoint with quantized weights, not trained. A control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from qatval.core.summary import MethodRecord
from qatval.quant.methods.part import Part, Training


@dataclass(frozen=True)
class Untrained(Part):
    """No training at all."""

    kind = "untrained"

    @classmethod
    def from_preset(cls, name: str, settings: Any) -> Part:
        """Return the part; it has no settings."""
        return cls(name)

    @property
    def is_control(self) -> bool:
        """Always."""
        return True

    def training(self, before: Training | None) -> None:
        """Return None: nothing is trained."""
        return

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record that nothing is trained."""
        return msgspec.structs.replace(record, training="none")
