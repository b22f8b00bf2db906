"""What breaks a model is restored by the repair of its name, and by none that comes before it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from qatval.quant.batchnorm import reestimate
from qatval.quant.quantized_conv import quantized_layers, weight_scale_value
from qatval.quant.repairs import Fallen, Repair, repairs

from .conftest import LAYERS, W4A4, W4A16, float_model, images, quantized_model


def batches():
    return [images(5), images(6)]


def well(spec=W4A16):
    """A model whose statistics fit it, so that fresh ones change little."""
    return reestimate(quantized_model(spec), batches()).eval()


def scale_of(model, name):
    return weight_scale_value(dict(quantized_layers(model))[name])


@torch.no_grad()
def distance(model: nn.Module, to: nn.Module) -> float:
    x = images(5)
    return float((model(x) - to(x)).norm())


def restoring(fallen: Fallen, to: nn.Module) -> Repair | None:
    """Return the first repair that comes closer than half-way to a model, the narrowest of its."""
    half = 0.5 * distance(fallen.model, to)
    assert half > 0
    for repair in repairs(fallen):
        if distance(repair.made(), to) < half:
            within = [r for r in repair.within if distance(r.made(), to) < half]
            return within[0] if within else repair
    return None


def fallen(model, good, raw=None, head="2"):
    return Fallen(model, good, raw, batches, head)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("factor", [0.0, 0.05, -0.1, 8.0])
def test_a_scale_that_left_its_value_is_named(name, factor):
    good = well()
    broken = deepcopy(good)
    with torch.no_grad():
        scale_of(broken, name).mul_(factor)
    found = restoring(fallen(broken, good), good)
    assert found is not None
    assert (found.of, found.layer) == ("scale", name)
