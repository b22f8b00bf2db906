"""Why a training's weights fell below the collapse line: one thing repaired after the other.

The training keeps the weights of an epoch in which they fell (`qatval.train.kept_weights`); here,
after it, copies of them are repaired (`qatval.quant.repairs`) and scored on a part of the run's
validation images, beside the weights as they are and the best before the fall. A repair that
restores more than half of what lies between the two names the cause. Nothing that is trained or
delivered depends on it: where nothing fell, nothing is done, and an interrupted autopsy is made
anew.

A part of the images, since for a fall no more of them go through a model than an epoch's validation
sends through one: at most `MOST_SCORED` models are scored, and the statistics of at most
`MOST_MEASURED` are measured on as many training images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from msgspec.structs import replace
from torch import nn

from qatval.core.measurements import Autopsy, Fall, Probe
from qatval.core.summary import RunSummary
from qatval.core.trajectory import rises, training_loss
from qatval.quant.methods import Method
from qatval.quant.methods.part import Weights
from qatval.quant.repairs import Fallen, Repair, repairs
from qatval.run.models import Setup, TrainedModels
from qatval.train.evaluation import evaluator, same_randomness
from qatval.train.models import load_checkpoint
from qatval.train.trajectory import Trajectory

MOST_SCORED: Final = 8
"""Models for one fall: the broken one, the best before, and no way through `repairs` is longer."""

MOST_MEASURED: Final = 3
"""Models whose statistics are measured: as they are, with nothing rounded, with a head in float."""

LEAST_IMAGES: Final = 8
"""Of fewer no score says anything. Only with less than 88 validation images is this more."""

LEAST_LOST: Final = 0.25
"""Share of the best value that must be lost on the images looked at, half of what a fall has lost.

Chosen here. A repair that restores half of less moves a score no further than few images do.
"""

RESTORED: Final = 0.5
"""A repair that restores more than this share of the loss names the cause."""


def has_fallen(summary: RunSummary) -> bool:
    """Return whether a run's weights were below the collapse line in any epoch."""
    found = summary.stability.trajectory
    return found is not None and any(fall.epoch is not None for fall in found.falls)


def autopsies(method: Method, summary: RunSummary, trained: TrainedModels) -> tuple[Autopsy, ...]:
    """Look into each fall of a run's weights, and into its last epoch if that is below the line.

    Falls of a training that kept no weights of them, as it had kept those of
    `qatval.train.kept_weights.MOST_FALLS` others, are left out. What methods that share their
    weights differ in came after them, so one look is enough for all.

    Args:
        method: Which weights count.
        summary: With the verdict on all epochs.
        trained: What the training left, and what it started from.
    """
    found, trajectory, weights = summary.stability.trajectory, trained.trajectory, method.weights
    assert found is not None
    assert trajectory is not None
    if weights not in trained.autopsies:
        falls = [fall for fall in found.falls if fall.epoch is not None]
        with same_randomness():
            examiner = _Examiner(method, trained.setup, trajectory)
            trained.autopsies[weights] = tuple(examiner.all_of(falls))
    return trained.autopsies[weights]


class _Examiner:
    """Repairs and scores weights that one method takes of a training."""

    def __init__(self, method: Method, setup: Setup, trajectory: Trajectory) -> None:
        self._weights = method.weights
        self._quantized = method.quantized
        self._setup = setup
        self._trajectory = trajectory
        val = setup.subset.val
        share = len(val) // (MOST_SCORED + MOST_MEASURED)
        self._images = max(share, min(LEAST_IMAGES, len(val)))
        part = dataclasses.replace(setup.subset, val=val.first(self._images))
        folder = Path(trajectory.directory)
        self._scorer = evaluator(part, setup.arguments, setup.device, folder)

    def all_of(self, falls: Sequence[Fall]) -> Iterator[Autopsy]:
        """Look into the first epoch of each fall, and into the last one if it is in the last."""
        kept, weights = self._trajectory, self._weights
        for fall in falls:
            assert fall.epoch is not None
            file_of = partial(kept.fallen, weights, fall.epoch)
            if file_of(weights).exists():
                yield self._examine(fall, fall.epoch, file_of, bool(fall.loss_rose))
        last, epochs = falls[-1], kept.history[weights]
        if last.recovered is None and last.epoch != len(epochs):
            before, then = last.loss_before, training_loss(epochs[-1].metrics or {})
            rose = before is not None and then is not None and rises(before, then)
            yield self._examine(last, len(epochs), self._at_the_end, rose)

    def _at_the_end(self, name: Weights | Literal["best"]) -> Path:
        if name == "best":
            return self._trajectory.checkpoint(self._weights, "best")
        return self._trajectory.checkpoint(name)

    def _examine(
        self,
        fall: Fall,
        epoch: int,
        file_of: Callable[[Weights | Literal["best"]], Path],
        loss_rose: bool,
    ) -> Autopsy:
        """Look into the weights of an epoch.

        Args:
            fall: That it is in.
            epoch: Its number.
            file_of: Returns where those weights are, and the best before the fall.
            loss_rose: Whether the training loss is above that of before the fall.
        """
        model: Any = self._load(file_of(self._weights))
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            return Autopsy(epoch=epoch, images=0, cause="training")
        fallen = Fallen(
            model=model,
            good=self._start() if fall.best_epoch == 0 else self._load(file_of("best")),
            raw=self._load(file_of("raw")) if self._weights == "ema" else None,
            images=self._calibration_images,
            head=f"model.{len(model.model) - 1}",
        )
        good, broken = self._score(fallen.good), self._score(model)
        looked = Autopsy(epoch=epoch, images=self._images, good=good, broken=broken)
        if not good - broken > LEAST_LOST * good:
            return looked  # shares of a loss next to nothing are chance
        probes: list[Probe] = []

        def restores(repair: Repair) -> bool:
            value = self._score(repair.made())
            probes.append(Probe(repair.of, repair.layer, value, (value - broken) / (good - broken)))
            return probes[-1].restored > RESTORED

        for repair in repairs(fallen):
            if restores(repair):
                wide = probes[-1]
                found = probes[-1] if any(map(restores, repair.within)) else wide
                return replace(
                    looked,
                    cause=found.repaired,
                    layer=found.layer,
                    restored=found.restored,
                    probes=tuple(probes),
                )
        return replace(looked, cause="training" if loss_rose else None, probes=tuple(probes))

    def _calibration_images(self) -> Iterator[torch.Tensor]:
        """Yield batches of the first calibration images, as many as models are scored on."""
        left = self._images
        for batch in self._setup.images.pixels():
            yield batch[:left]
            left -= len(batch)
            if left <= 0:
                return

    def _load(self, file: Path) -> nn.Module:
        model: nn.Module = load_checkpoint(file, self._setup.device)
        return model

    def _start(self) -> nn.Module:
        """Return what the training started from."""
        if not self._quantized:
            return self._setup.reference
        assert self._setup.start is not None
        return self._load(self._setup.start.path)

    def _score(self, model: nn.Module) -> float:
        """Return a model's mAP 50-95; what answers with no numbers detects nothing."""
        value = self._scorer.evaluate(model).value
        return value if math.isfinite(value) else 0.0
