"""``qc``: quantization correction, learned after the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from qatval.core import formatting
from qatval.core.errors import UsageError
from qatval.core.method_record import MethodRecord, QcRecord
from qatval.core.presets import Profile
from qatval.quant.methods.batchnorm import OtherStatistics, Reestimated
from qatval.quant.methods.part import Context, Effect, Part

if TYPE_CHECKING:
    from torch import nn

    from qatval.quant.methods import Method


@dataclass(frozen=True)
class Correction(Part):
    """A scale and a shift per channel; see `qatval.quant.correction`.

    Attributes:
        epochs: Passes over the calibration images.
        lr: Learning rate of Adam.
    """

    epochs: int
    lr: float

    kind = "correction"
    works_in_float = True
    changes_model = True
    value_before = "before_qc_value"
    stages = ("correction",)

    def under(self, profile: Profile) -> Correction:
        """Return QC at the profile's own rate, where it has one."""
        return self if profile.correction_lr is None else replace(self, lr=profile.correction_lr)

    def check(self, others: Sequence[Part]) -> None:
        """Refuse other statistics: QC learns beside fixed ones."""
        if any(isinstance(other, OtherStatistics) for other in others):
            raise UsageError(
                "QC keeps the BatchNorm statistics fixed, so it cannot be combined with other ones"
            )

    def after(
        self, model: nn.Module, context: Context, record: MethodRecord
    ) -> tuple[nn.Module, MethodRecord]:
        """Return the model with the learned correction folded in."""
        from qatval.quant.integer import integer_layers
        from qatval.quant.layers import quantizable

        context.stage("correction", self.epochs * len(context.images))
        model, changes = context.learn_correction(
            model,
            epochs=self.epochs,
            lr=self.lr,
            names=integer_layers(model).keys() or quantizable(model, context.quantization),
        )
        qc = msgspec.structs.replace(record.qc, images=context.images.count, changes=changes)
        return model, msgspec.structs.replace(record, qc=qc)

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Record how QC is learned."""
        qc = QcRecord(True, self.epochs, self.lr, bn_stats_fixed=True)
        return msgspec.structs.replace(record, qc=qc)

    def controls(self, method: Method) -> list[str]:
        """Return the same correction in FP32, and fresh statistics in QC's place."""
        return [method.in_float().name, method.replaced(self.name, _FRESH).name]

    def effects(self, method: Method) -> list[Effect]:
        """Return the gain of QC, against fresh statistics and against correcting an FP32 model."""
        reference, control = method.without(self.name).name, method.in_float()
        gain = method.name, reference
        return [
            Effect(
                "correction",
                gain,
                (method.replaced(self.name, _FRESH).name, reference),
                what="QC",
                target="",
                control_does="fresh BatchNorm statistics in place of QC",
                control_is="fresh statistics",
                plural=True,
            ),
            Effect(
                "correction-in-float",
                gain,
                (control.name, control.without(self.name).name),
                what="QC",
                target=" for the quantized model",
                control_does="in FP32 under the same schedule the same correction",
                control_is="correcting an FP32 model",
            ),
        ]

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield how QC was learned and the most that it changed."""
        qc = record.qc
        if not qc.enabled:
            return
        epochs, lr = formatting.setting(qc.epochs), formatting.setting(qc.lr)
        images = f" on {qc.images} training images" if qc.images else ""
        yield f"QC: {epochs} epoch(s) of Adam at {lr}{images}"
        if qc.changes:
            gamma = max(change.gamma_mean_abs_change for change in qc.changes.values())
            beta = max(change.beta_max_abs for change in qc.changes.values())
            yield (
                f"QC changed gamma by up to {gamma:.3g} (mean of a layer), beta by up to {beta:.3g}"
            )


_FRESH = Reestimated("bn")
