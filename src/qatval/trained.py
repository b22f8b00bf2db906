"""What trainings start from and what they leave, as the models that methods are scored on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qatval.data.subset import Subset
from qatval.methods import Arm, Averaging
from qatval.quant.batchnorm import reestimate
from qatval.quant.integer import to_integer
from qatval.quant.layers import LayerCoverage
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
        self._frozen: dict[Arm, nn.Module] = {}
        self._reestimated: dict[Arm, nn.Module] = {}

    def frozen(self, arm: Arm) -> nn.Module:
        """Return an arm's last weights, as integer codes where they are quantized."""
        if arm not in self._frozen:
            if self.trajectory is None:
                assert self.prepared.naive is not None
                path = self.prepared.naive.path
            else:
                path = self.trajectory.weights(arm)
            self._frozen[arm] = to_integer(load_checkpoint(path))
        return self._frozen[arm]

    def reestimated(self, arm: Arm) -> nn.Module:
        """Return an arm's frozen model with BatchNorm statistics of the calibration images."""
        if arm not in self._reestimated:
            images = self.prepared.images
            model = copy.deepcopy(self.frozen(arm)).to(images.device)
            self._reestimated[arm] = reestimate(model, images.pixels()).cpu()
        return self._reestimated[arm]
