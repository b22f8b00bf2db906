"""Why a training's weights fell below the collapse line: one thing repaired after the other.

The training keeps the weights of an epoch in which they fell (`qatval.train.kept_weights`); here,
after it, copies of them are repaired (`qatval.quant.repairs`) and scored on a part of the run's
validation images, beside the weights as they are and the best before the fall. A repair that
restores more than half of what lies between the two names the cause. Nothing that is trained or
delivered depends on it: where nothing fell, nothing is done, and an interrupted autopsy is made
anew.

A part of the images, since at most `MOST_SCORED` models are scored for a fall and all of them
together score no more images than an epoch's validation scores with one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from msgspec.structs import replace
from torch import nn

from qatval.core.measurements import Autopsy, Cause, Fall, Probe
from qatval.core.summary import RunSummary
from qatval.quant.methods import Method
from qatval.quant.methods.part import Weights
from qatval.quant.repairs import Fallen, Repair, repairs
from qatval.run.models import Setup, TrainedModels
from qatval.train.evaluation import evaluator, same_randomness
from qatval.train.models import load_checkpoint
from qatval.train.trajectory import Trajectory

MOST_SCORED: Final = 8
"""Models for one fall: the broken one, the best before, and no way through `repairs` is longer."""

LEAST_IMAGES: Final = 8
"""Of fewer no score says anything. Only with less than 64 validation images is this more."""

RESTORED: Final = 0.5
"""A repair that restores more than this share of the loss names the cause."""


def has_fallen(summary: RunSummary) -> bool:
    """Return whether a run's weights were below the collapse line in any epoch."""
    found = summary.stability.trajectory
    return found is not None and any(fall.epoch is not None for fall in found.falls)


def autopsies(method: Method, summary: RunSummary, trained: TrainedModels) -> tuple[Autopsy, ...]:
    """Look into each fall of a run's weights, and into its last epoch if that is below the line.

    Falls of a training that kept no weights of them, as it had kept those of
    `qatval.train.kept_weights.MOST_FALLS` others, are left out.

    Args:
        method: Which weights count.
        summary: With the verdict on all epochs.
        trained: What the training left, and what it started from.
    """
    found, trajectory = summary.stability.trajectory, trained.trajectory
    assert found is not None
    assert trajectory is not None
    with same_randomness():
        examiner = _Examiner(method, trained.setup, trajectory)
        made = [
            examiner.of_fall(fall)
            for fall in found.falls
            if fall.epoch is not None and trajectory.fallen(fall.epoch, method.weights).exists()
        ]
        last = found.falls[-1]
        end = len(trajectory.history[method.weights])
        if last.epoch is not None and last.recovered is None and last.epoch < end:
            made.append(examiner.of_end(last, end))
    return tuple(made)


class _Examiner:
    """Repairs and scores weights that one method takes of a training."""

    def __init__(self, method: Method, setup: Setup, trajectory: Trajectory) -> None:
        self._weights = method.weights
        self._quantized = method.quantized
        self._setup = setup
        self._trajectory = trajectory
        val = setup.subset.val
        self._images = max(len(val) // MOST_SCORED, min(LEAST_IMAGES, len(val)))
        part = dataclasses.replace(setup.subset, val=val.first(self._images))
        folder = Path(trajectory.directory)
        self._scorer = evaluator(part, setup.arguments, setup.device, folder)

    def of_fall(self, fall: Fall) -> Autopsy:
        """Look into the first epoch of a fall."""
        assert fall.epoch is not None
        return self._examine(
            fall,
            fall.epoch,
            partial(self._trajectory.fallen, fall.epoch),
            self._trajectory.fallen(fall.epoch, self._weights, best=True),
        )

    def of_end(self, fall: Fall, epoch: int) -> Autopsy:
        """Look into the last epoch of the training, in a fall that did not end."""
        best = self._trajectory.checkpoint(self._weights, "best")
        return self._examine(fall, epoch, self._trajectory.checkpoint, best)

    def _examine(
        self, fall: Fall, epoch: int, file_of: Callable[[Weights], Path], best: Path
    ) -> Autopsy:
        """Look into the weights of an epoch: those of a function, beside the best before."""
        model: Any = self._load(file_of(self._weights))
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            return Autopsy(epoch=epoch, images=0, cause="training")
        fallen = Fallen(
            model=model,
            good=self._start() if fall.best_epoch == 0 else self._load(best),
            raw=self._load(file_of("raw")) if self._weights == "ema" else None,
            images=self._setup.images.pixels,
            head=f"model.{len(model.model) - 1}",
        )
        good, broken = self._score(fallen.good), self._score(model)
        probes: list[Probe] = []

        def restores(repair: Repair) -> bool:
            value = self._score(repair.made())
            restored = (value - broken) / (good - broken) if good > broken else None
            probes.append(Probe(repair.of, repair.layer, value, restored))
            return restored is not None and restored > RESTORED

        looked = Autopsy(epoch=epoch, images=self._images, good=good, broken=broken)
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
        cause: Cause | None = "training" if fall.loss_rose else None
        return replace(looked, cause=cause, probes=tuple(probes))

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
