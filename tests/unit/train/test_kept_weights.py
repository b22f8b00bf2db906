"""The weights that a training keeps, and of which epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qatval.quant.methods.part import Weights
from qatval.train.kept_weights import MOST_FALLS, KeptWeights
from qatval.train.models import CheckpointInfo
from qatval.train.recording import EpochLog
from qatval.train.trajectory import Trajectory

METRIC = "metrics/mAP50-95(B)"


class Training:
    """Weights that are one number, raw, and its half, averaged."""

    def __init__(self, folder: Path) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        info = CheckpointInfo("float", "yolov10n.yaml", ("circle",), None)
        self.kept = KeptWeights(folder, info, self._of)
        self.left = Trajectory(directory=str(folder))

    def become(self, number: float) -> None:
        with torch.no_grad():
            self.model.weight.fill_(number)

    def _of(self, which: Weights) -> nn.Module:
        model = nn.Linear(1, 1, bias=False)
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            model.weight.mul_(1.0 if which == "raw" else 0.5)
        return model


def number(path: Path) -> float:
    return float(load_file(path)["weight"])


def test_the_weights_of_a_fall_are_kept_and_the_best_until_then(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.become(8.0)
    training.kept.keep_best("raw")
    training.become(2.0)
    training.kept.keep_fallen("raw", 3)
    training.become(4.0)
    training.kept.keep_fallen("ema", 4)
    training.become(16.0)
    training.kept.keep_best("raw")  # after it has recovered
    training.kept.keep_last()
    left = training.left
    assert number(left.fallen("raw", 3, "raw")) == 2.0
    assert number(left.fallen("raw", 3, "best")) == 8.0
    assert not left.fallen("raw", 3, "ema").exists()  # an average is not what raw weights are of
    assert number(left.fallen("ema", 4, "ema")) == 2.0
    assert number(left.fallen("ema", 4, "raw")) == 4.0
    assert not left.fallen("ema", 4, "best").exists()  # it never was better than the start
    assert number(left.checkpoint("raw", "best")) == number(left.checkpoint("raw")) == 16.0
    assert number(left.checkpoint("ema")) == 8.0


def test_a_training_that_falls_again_and_again_fills_no_disk(tmp_path: Path) -> None:
    training = Training(tmp_path)
    epochs = range(1, MOST_FALLS + 4)
    for epoch in epochs:
        training.become(epoch)
        training.kept.keep_fallen("raw", epoch)
    kept = [e for e in epochs if training.left.fallen("raw", e, "raw").exists()]
    assert kept == list(range(1, MOST_FALLS + 1))
    training.become(99.0)
    training.kept.keep_fallen("raw", MOST_FALLS)  # an interrupted training scores its epoch again
    assert number(training.left.fallen("raw", MOST_FALLS, "raw")) == 99.0
    training.kept.keep_fallen("ema", MOST_FALLS + 4)  # the average is still the first time
    assert training.left.fallen("ema", MOST_FALLS + 4, "ema").exists()


@pytest.mark.parametrize(
    ("start", "values", "falls"),
    [
        (None, [0.1], False),
        (0.5, [0.1], True),
        (0.5, [0.1, 0.1], False),  # it began before
        (0.5, [0.3, 0.2], True),  # against the start, not against the epoch before
        (None, [0.5, float("nan")], True),
        (None, [0.5, 0.25], False),
        (None, [0.004, 0.0], False),  # a training from scratch that has not learned anything yet
        (None, [0.0051, 0.0], True),
    ],
)
def test_a_fall_begins(
    start: float | None, values: list[float], falls: bool, tmp_path: Path
) -> None:
    log = EpochLog(tmp_path, ["raw"])
    for epoch, value in enumerate(values, start=1):
        (tmp_path / "raw").mkdir(exist_ok=True)
        log.add("raw", epoch, 1.0, {METRIC: value})
    log.close()
    assert log.falls("raw", start, fp32=0.5) is falls
