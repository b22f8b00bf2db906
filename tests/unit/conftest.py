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
    """Leave all that is imported out of garbage collections, and let those be rare.

    They would walk it, and the thousands of modules that a quantized model is, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_unconfigure() -> None:
    """Give it back, or Triton reports its own as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def quantized_detector() -> Callable[[str, str], nn.Module]:
    """Return a function that gives a detector, by its architecture, quantized under a preset.

    It knows three classes. There is one for all tests, as building it takes most of a second:
    copy it to change it.
    """

    @functools.cache
    def build(architecture: str, preset: str) -> nn.Module:
        import torch

        from qatval.core.detectors import detector_of
        from qatval.core.presets import quantization
        from qatval.quant.layers import calibrate_activations, insert_quantizers
        from qatval.train.models import build_model

        torch.manual_seed(1)
        model = build_model(architecture, ("circle", "square", "triangle"))
        insert_quantizers(model, quantization(preset, detector_of(architecture)))
        calibrate_activations(model, [torch.rand(1, 3, 64, 64)])
        return model.eval()

    return build
