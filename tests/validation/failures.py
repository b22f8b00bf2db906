"""Trainings that truly fail, each for one known cause: what an autopsy has to name.

Each is a run of the embedded data in which `QatTrainer` does one thing wrong, half-way through the
training or all the time; everything else is as always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from qatval.core import presets
from qatval.core.presets import Profile
from qatval.core.progress import Progress
from qatval.core.summary import RunSummary
from qatval.quant.averaging import WeightAverage, unwrapped
from qatval.quant.batchnorm import tracking
from qatval.quant.methods import method
from qatval.quant.quantized_conv import quantized_layers, weight_scale_value
from qatval.run import runner
from qatval.run.configuration import RunConfig
from qatval.train import trainer as training
from qatval.train.trainer import QatTrainer

LAYER = "model.23.one2one_cv2.0.1.conv"
"""Whose scale is tampered with: one that docs/collapse.md found broken by itself."""

BEHIND = LAYER.removesuffix("conv") + "bn"

HALF_WAY = 0.5


class SignedAverage(QatTrainer):
    """Averages the parameters behind scales, and not their magnitudes, as Ultralytics does.

    Half-way one parameter changes its sign, as under SGD some do by themselves. The network that
    trains computes the same: Brevitas takes the absolute value.
    """

    def _setup_train(self) -> None:
        super()._setup_train()
        self.ema = WeightAverage(unwrapped(self.model), self.ema.decay, self.ema.tau)

    def optimizer_step(self) -> None:
        super().optimizer_step()
        if self.ema.updates == int(HALF_WAY * self._updates) + 4:
            change(self, lambda scale: scale.neg_())


class VanishingScale(QatTrainer):
    """Drives one scale to zero from half-way on, faster than statistics follow."""

    def optimizer_step(self) -> None:
        super().optimizer_step()
        if self.ema.updates > HALF_WAY * self._updates:
            change(self, lambda scale: scale.mul_(0.7))


class StaleStatistics(QatTrainer):
    """Keeps BatchNorm's statistics where they were while weights move on."""

    def setup_model(self) -> None:
        super().setup_model()
        for _, layer in tracking(self.model):
            layer.momentum = 1e-4


class Overflow(QatTrainer):
    """Goes over to float16 half-way, and a convolution's numbers grow beyond its largest.

    BatchNorm divides by what its inputs grow by, so in float32 the network stays the same.
    """

    def optimizer_step(self) -> None:
        super().optimizer_step()
        if self.ema.updates == int(HALF_WAY * self._updates) + 4:
            self.amp = torch.float16
            self.scaler = torch.amp.GradScaler("cpu")
            layer = dict(quantized_layers(unwrapped(self.model)))[LAYER]
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.mul_(2.0**20)


class NoNumbers(QatTrainer):
    """Makes a weight no number at once."""

    def optimizer_step(self) -> None:
        super().optimizer_step()
        change(self, lambda scale: scale.fill_(torch.nan))


@torch.no_grad()
def change(trainer: QatTrainer, by: Callable[[torch.Tensor], object]) -> None:
    layers = dict(quantized_layers(unwrapped(trainer.model)))
    by(weight_scale_value(layers[LAYER]))


@dataclass(frozen=True)
class Failure:
    """A training and what its autopsy must say.

    Attributes:
        method: That is run.
        trainer: What does it wrong.
        overrides: Ultralytics' arguments that differ from those of the other trainings.
        cause, layer: That must be named; the layer where there is one.
    """

    method: str
    cause: str
    layer: str | None = None
    trainer: type[QatTrainer] = QatTrainer
    overrides: tuple[tuple[str, object], ...] = ()


FAILURES = {
    "learning rate": Failure("baseline", "training", overrides=(("lr0", 0.3),)),
    "learning rate in FP32": Failure("fp32", "training", overrides=(("lr0", 0.3),)),
    "signed average": Failure("ema", "averaged scale", LAYER, SignedAverage),
    "scale driven to zero": Failure("baseline", "scale", LAYER, VanishingScale),
    "overflow in float16": Failure("ema+qc", "overflow", BEHIND, Overflow),
    "stale statistics": Failure("baseline", "statistics", None, StaleStatistics, (("lr0", 0.01),)),
}

NO_NUMBERS = Failure("ema", "training", trainer=NoNumbers)

STABLE = Failure("baseline", "")
"""The same training with nothing wrong."""

PROFILE = Profile(
    dataset="shapes",
    name="smoke",
    epochs=4,
    batch=16,
    imgsz=96,
    train_images=128,
    val_images=128,
    correction_lr=1e-3,
    overrides={
        "optimizer": "SGD",
        "lr0": 0.003,
        "lrf": 1.0,
        "momentum": 0.9,
        "warmup_momentum": 0.9,
        "warmup_epochs": 0.5,
        "warmup_bias_lr": 0.0,
        "nbs": 16,
        "mosaic": 0.0,
    },
)


def run(
    failure: Failure,
    seed: int,
    root: Path,
    coco_root: Path,
    methods: Sequence[str] = (),
    **changes: Any,
) -> list[RunSummary]:
    """Run a training that fails.

    Args:
        failure: What is wrong with it.
        seed: Of the run.
        root: The run root.
        coco_root: The embedded data.
        methods: That read it off, None but the failure's own by default.
        changes: Of `PROFILE`.

    Returns:
        The methods' summaries.
    """
    variant = presets.variant("yolo10n")
    overrides = {**PROFILE.overrides, **dict(failure.overrides)}
    config = RunConfig(
        variant=variant,
        methods=tuple(map(method, methods or [failure.method])),
        profile=replace(PROFILE, overrides=overrides, **changes),
        quantization=presets.quantization("w4a16"),
        seed=seed,
        run_root=root,
        coco_root=coco_root,
        checkpoint=variant.checkpoint_for("shapes"),
        device="cpu",
        cache_dir=coco_root.parent / "cache",
    )
    with mock.patch.object(training, "QatTrainer", failure.trainer):
        return runner.run(config, Progress("failing", quiet=True))
