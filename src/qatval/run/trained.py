"""What trainings start from and what they leave, as the models that methods are scored on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qatval.data.subset import Subset
from qatval.quant.anchoring import shift_statistics
from qatval.quant.batchnorm import reestimate
from qatval.quant.integer import to_integer
from qatval.quant.layers import LayerCoverage
from qatval.quant.methods import Arm, Averaging, Method, Rounding
from qatval.train.calibration import CalibrationImages
from qatval.train.evaluation import Evaluator
from qatval.train.models import load_checkpoint
from qatval.train.trajectory import Trajectory


@dataclass(frozen=True)
class Untrained:
    """The quantized model before any training.

    Attributes:
        path: Its checkpoint, which trainings start from.
        value: Its mAP 50-95.
        layers: What became of each layer.
    """

    path: Path
    value: float
    layers: list[LayerCoverage]


@dataclass(frozen=True)
class Prepared:
    """What all trainings of a run have in common.

    Attributes:
        reference: The FP32 checkpoint, on the device.
        subset: The data.
        scorer: Scores models on its validation images.
        images: The training images that QC learns on, and what it is compared with sees.
        device: Where models run.
        arguments: Ultralytics' arguments.
        averaging: How the moving average is made.
        threads: CPU threads of torch.
        fp32_value: mAP 50-95 of the FP32 checkpoint.
        naive: The checkpoint with its weights rounded and nothing else done, None if no method is
            quantized.
        started: What trainings start from: the same, prepared as the preset says.
    """

    reference: nn.Module
    subset: Subset
    scorer: Evaluator
    images: CalibrationImages
    device: torch.device
    arguments: Mapping[str, Any]
    averaging: Averaging
    threads: int
    fp32_value: float
    naive: Untrained | None
    started: Untrained | None


_Weights = tuple[Arm, Rounding | None]


class Trained:
    """What all methods that share a training have in common.

    Models are made once for all of them and must be left as they are.

    Attributes:
        prepared: What the training shares with others.
        trajectory: What it left, None if there was none: the quantized checkpoint as it is.
        identity: Identifies the training.
    """

    def __init__(
        self, prepared: Prepared, trajectory: Trajectory | None = None, identity: str | None = None
    ) -> None:
        """Take up what a training left, if there was one."""
        self.prepared = prepared
        self.trajectory = trajectory
        self.identity = identity
        self._frozen: dict[_Weights, nn.Module] = {}
        self._reestimated: dict[_Weights, nn.Module] = {}

    def frozen(
        self, method: Method, on_layer: Callable[[int], None] = lambda done: None
    ) -> nn.Module:
        """Return the weights that a method takes, as integer codes where they are quantized.

        Args:
            method: Says which arm of the training, or how the checkpoint is rounded.
            on_layer: Called with the number of layers rounded so far, where that takes a while.
        """
        key = (method.arm, method.rounding)
        if key not in self._frozen:
            model = self._latent(method)
            if method.rounding is not None:
                # Half a second that few runs need.
                from qatval.quant.gptq import at_most, round_by_gptq

                images = self.prepared.images
                batches = at_most(images.pixels(), method.rounding.images)
                model = round_by_gptq(model.to(images.device), batches, on_layer).cpu()
            self._frozen[key] = to_integer(model)
        return self._frozen[key]

    def _latent(self, method: Method) -> nn.Module:
        if self.trajectory is not None:
            path = self.trajectory.weights(method.arm)
        else:
            assert self.prepared.naive is not None
            path = self.prepared.naive.path
        model: nn.Module = load_checkpoint(path)
        return model

    def reestimated(self, method: Method) -> nn.Module:
        """Return a method's frozen model with BatchNorm statistics of the calibration images."""
        key = (method.arm, method.rounding)
        if key not in self._reestimated:
            images = self.prepared.images
            model = copy.deepcopy(self.frozen(method)).to(images.device)
            self._reestimated[key] = reestimate(model, images.pixels()).cpu()
        return self._reestimated[key]

    def shifted(self, method: Method) -> nn.Module:
        """Return its frozen model with the checkpoint's statistics, moved by what is not alike."""
        images = self.prepared.images
        model = copy.deepcopy(self.frozen(method)).to(images.device)
        return shift_statistics(model, self.prepared.reference, images.pixels).cpu()
