"""``dampen``, ``freeze`` and other packages' own: what takes part in every gradient step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from qatval.core.errors import UsageError
from qatval.core.method_record import AddedPart, MethodRecord
from qatval.quant.methods.part import ClassPart, Training, trained_with

if TYPE_CHECKING:
    from qatval.quant.latent import LatentWeights
    from qatval.quant.stabilizing import Stabilizer


@dataclass(frozen=True)
class StabilizerPart(ClassPart):
    """A subclass of `qatval.quant.stabilizing.Stabilizer`."""

    kind = "stabilizer"

    def training(self, before: Training | None) -> Training:
        """Return the training with this stabilizer in it, last."""
        training = trained_with(before)
        if not training.quantized:
            raise UsageError("an FP32 training has no quantization to stabilise")
        return trained_with(training, stabilizers=(*training.stabilizers, self))

    def make(self, weights: LatentWeights) -> Stabilizer:
        """Start the stabilizer on these weights.

        Raises:
            UsageError: If there is no such class, or it does not take its settings.
        """
        from qatval.quant.stabilizing import Stabilizer

        made: Stabilizer = self.load(Stabilizer, weights)
        return made

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record the class and its settings."""
        return msgspec.structs.replace(
            record, stabilizers=(*(record.stabilizers or ()), self._recorded())
        )

    def trained(self, record: MethodRecord, training: Any) -> MethodRecord:
        """Record what the stabilizer reported at the end."""
        announced = record.stabilizers or ()
        reports = training.stabilizers or [{}] * len(announced)
        reported = tuple(
            msgspec.structs.replace(other, report=report) if other == self._recorded() else other
            for other, report in zip(announced, reports, strict=True)
        )
        return msgspec.structs.replace(record, stabilizers=reported)

    def _recorded(self) -> AddedPart:
        return AddedPart(self.implementation, dict(self.settings), {})

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield each stabilizer with its settings and what it reported."""
        return map(described, record.stabilizers or ())


def described(added: AddedPart) -> str:
    """Say what a class was given and what it reported, e.g. ``"Freezing: start 0.25"``."""
    name = added.implementation.rpartition(":")[2]
    settings, report = _listed(added.settings), _listed(added.report)
    return f"{name}: {settings or 'no settings'}" + (f"; at the end {report}" if report else "")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in values.items()
    )
