"""``ema``: the moving average of the weights in the place of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from qatval.core import formatting
from qatval.core.errors import UsageError
from qatval.core.method_record import EmaRecord, MethodRecord
from qatval.quant.methods.part import Context, Effect, Part, Training

if TYPE_CHECKING:
    from torch import nn

    from qatval.quant.methods import Method


@dataclass(frozen=True)
class Averaging(Part):
    """An exponential moving average whose horizon follows the length of the run.

    Attributes:
        max_decay: Decay of a run long enough for it, in [0, 1).
        max_tau: Time constant of the ramp in a run long enough for it, in optimizer steps.
        window: Averaging window ``1 / (1 - decay)`` as a share of the run's steps.
        ramp: ``tau`` as a share of the run's steps.
    """

    max_decay: float
    max_tau: float
    window: float
    ramp: float

    kind = "averaging"
    works_in_float = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_decay < 1.0:
            raise UsageError(f"EMA decay must lie in [0, 1), got {self.max_decay}")
        if min(self.max_tau, self.window, self.ramp) <= 0.0:
            raise UsageError(
                "EMA max_tau, window and ramp must be positive, "
                f"got {self.max_tau}, {self.window}, {self.ramp}"
            )

    def for_steps(self, steps: int) -> tuple[float, float]:
        """Return ``(decay, tau)`` for a run of ``steps`` optimizer steps."""
        window = max(self.window * steps, 1.0)
        return min(self.max_decay, 1.0 - 1.0 / window), min(self.max_tau, self.ramp * steps)

    def training(self, before: Training | None) -> Training:
        """Return the same training: averaging takes no part in the gradient steps."""
        if before is None:
            raise UsageError("without a training there is nothing to average")
        return before

    def after(
        self, model: nn.Module, context: Context, record: MethodRecord
    ) -> tuple[nn.Module, MethodRecord]:
        """Record how many codes differ from those of the raw weights."""
        from qatval.quant.integer import integer_layers, share_differing

        if not integer_layers(model):
            return model, record
        differing = share_differing(model, context.raw())
        ema = msgspec.structs.replace(record.ema, codes_differing_from_raw=differing)
        return model, msgspec.structs.replace(record, ema=ema)

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record that there is an average; its decay depends on the training."""
        return msgspec.structs.replace(record, ema=EmaRecord(True, None, None))

    def trained(self, record: MethodRecord, training: Any) -> MethodRecord:
        """Record the decay that the training had."""
        ema = EmaRecord(
            True,
            decay=training.decay,
            tau=training.tau,
            updates=training.steps,
            effective_decay=training.effective_decay,
        )
        return msgspec.structs.replace(record, ema=ema)

    def controls(self, method: Method) -> list[str]:
        """Return the same average of the same training in FP32."""
        return [method.up_to(self).in_float().name]

    def effects(self, method: Method) -> list[Effect]:
        """Return the gain of averaging, against what averaging gains in FP32."""
        control = method.in_float()
        return [
            Effect(
                "averaging",
                (method.name, method.without(self.name).name),
                (control.name, control.without(self.name).name),
                what="averaging",
                target=" for the quantized training",
                control_does="in FP32 under the same schedule averaging",
                control_is="averaging by itself",
            )
        ]

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield the decay and how far the average is from the raw weights, or that it is off."""
        ema = record.ema
        if not ema.enabled:
            if record.training != "none":
                yield "EMA off: the raw weights were validated, saved and reported"
            return
        asked = f"decay {formatting.setting(ema.decay)}, tau {formatting.setting(ema.tau)}"
        reached = (
            ""
            if ema.effective_decay is None
            else f", effective decay at the end {ema.effective_decay:.4g}"
        )
        yield f"EMA: {asked}{reached}"
        if (differing := ema.codes_differing_from_raw) is not None:
            yield (
                f"{formatting.percent(differing)} of the weight codes differ from the raw model's"
                if differing
                else "not one weight code differs from the raw model's: this EMA was the raw "
                "weights"
            )
