"""The models of a run: what its trainings start from, and what its methods take from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qatval.core.classes import ClassMatch
from qatval.core.measurements import Autopsy, LayerCoverage
from qatval.data.subset import Subset
from qatval.quant.batchnorm import reestimate
from qatval.quant.integer import to_integer
from qatval.quant.methods import Method
from qatval.quant.methods.averaging import Averaging
from qatval.quant.methods.part import Context, Part, Weights
from qatval.run.deployment import Deployment
from qatval.train.calibration import CalibrationImages
from qatval.train.evaluation import Evaluator
from qatval.train.models import load_checkpoint
from qatval.train.trajectory import Trajectory


@dataclass(frozen=True)
class QuantizedCheckpoint:
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
class Setup:
    """What all trainings of a run have in common.

    Attributes:
        reference: The FP32 checkpoint, on the device, its classes in the dataset's order.
        classes: How the dataset's classes were found in it.
        subset: The data.
        evaluator: Scores models on its validation images.
        images: The calibration images.
        device: Where models run.
        arguments: Ultralytics' arguments.
        averaging: How the moving average is made.
        threads: CPU threads of torch.
        fp32_value: mAP 50-95 of the FP32 checkpoint.
        naive: The checkpoint with its weights rounded and nothing else done, None if no method is
            quantized.
        start: What trainings start from: the same, prepared as the preset says.
        deployment: Exports what methods deliver, None where nobody asked for it.
    """

    reference: nn.Module
    classes: ClassMatch
    subset: Subset
    evaluator: Evaluator
    images: CalibrationImages
    device: torch.device
    arguments: Mapping[str, Any]
    averaging: Averaging
    threads: int
    fp32_value: float
    naive: QuantizedCheckpoint | None
    start: QuantizedCheckpoint | None
    deployment: Deployment | None = None

    def start_value(self, method: Method) -> float:
        """Return the mAP of the model that a method's training, or the method itself, begins with.

        That of the FP32 checkpoint for an FP32 training, of the naive model where nothing is
        trained.
        """
        if not method.quantized:
            return self.fp32_value
        model = self.naive if method.training is None else self.start
        assert model is not None
        return model.value


class TrainedModels:
    """What all methods that share a training take from it.

    Models are made once for all of them and must be left as they are.

    Attributes:
        setup: What the training shares with others.
        trajectory: What it left, None if there was none: the quantized checkpoint as it is.
        identity: Identifies the training.
        autopsies: Those made so far, by weights.
    """

    def __init__(
        self, setup: Setup, trajectory: Trajectory | None = None, identity: str | None = None
    ) -> None:
        """Take up what a training left, if there was one."""
        self.setup = setup
        self.trajectory = trajectory
        self.identity = identity
        self.autopsies: dict[Weights, tuple[Autopsy, ...]] = {}
        self._frozen: dict[Any, nn.Module] = {}
        self._reestimated: dict[Any, nn.Module] = {}

    def raw(self) -> nn.Module:
        """Return the weights without averaging, as integer codes where they are quantized."""
        return self._freeze("raw", ())

    def frozen(self, method: Method, context: Context) -> nn.Module:
        """Return the weights that a method takes, as integer codes where they are quantized."""
        return self._freeze(method.weights, _rounding(method), context)

    def _freeze(
        self, weights: Weights, rounding: tuple[Part, ...], context: Context | None = None
    ) -> nn.Module:
        key = weights, rounding
        if key not in self._frozen:
            if self.trajectory is not None:
                model: nn.Module = load_checkpoint(self.trajectory.checkpoint(weights))
            else:
                assert self.setup.naive is not None
                model = load_checkpoint(self.setup.naive.path)
            for part in rounding:
                assert context is not None
                model = part.round(model, context)
            self._frozen[key] = to_integer(model)
        return self._frozen[key]

    def reestimated(self, method: Method) -> nn.Module:
        """Return a method's frozen model with BatchNorm statistics of the calibration images."""
        key = method.weights, _rounding(method)
        if key not in self._reestimated:
            images = self.setup.images
            model = copy.deepcopy(self._frozen[key]).to(images.device)
            self._reestimated[key] = reestimate(model, images.pixels()).cpu()
        return self._reestimated[key]


def _rounding(method: Method) -> tuple[Part, ...]:
    return tuple(part for part in method.parts if type(part).round is not Part.round)
