"""What tests of several quantization modules share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qatval.quant.correction import corrections


@pytest.fixture(scope="session")
def perturb() -> Callable[[nn.Module, int, float], None]:
    """Return a function that moves every gamma and beta of a corrected model at random."""

    @torch.no_grad()
    def move(corrected: nn.Module, seed: int, spread: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _, correction in corrections(corrected):
            for parameter in (correction.gamma, correction.beta):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)

    return move
