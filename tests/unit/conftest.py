"""Unit tests compute with small tensors: a second thread would cost more than it gives.

Set before anything imports torch, which reads it once.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # most of the tests load no torch
    from torch import nn


def pytest_collection_finish() -> None:
    """Leave all that is imported out of garbage collections: they would walk it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give it back, or Triton reports its own as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def quantized_yolo10n() -> Callable[[str], nn.Module]:
    """Return a function that gives yolo10n for three classes, quantized under a preset.

    One for all tests, as building it takes most of a second: copy it to change it.
    """

    @functools.cache
    def build(preset: str) -> nn.Module:
        import torch

        from qatval.core.presets import quantization
        from qatval.quant.layers import calibrate_activations, insert_quantizers
        from qatval.train.models import build_model

        torch.manual_seed(1)
        model = build_model("yolov10n.yaml", ("circle", "square", "triangle"))
        insert_quantizers(model, quantization(preset))
        calibrate_activations(model, [torch.rand(1, 3, 64, 64)])
        return model.eval()

    return build
