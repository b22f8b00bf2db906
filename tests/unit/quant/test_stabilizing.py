"""A preset's class is imported and started, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qatval.core.errors import UsageError
from qatval.core.presets import quantization
from qatval.quant.dampening import Dampening
from qatval.quant.freezing import Freezing
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import insert_quantizers
from qatval.quant.methods import method
from qatval.quant.methods.stabilizer import StabilizerPart
from qatval.quant.stabilizing import Stabilizer

DAMPENING = "qatval.quant.dampening:Dampening"
FREEZING = "qatval.quant.freezing:Freezing"
FREEZING_SETTINGS = {"momentum": 0.1, "first_threshold": 0.2, "last_threshold": 0.1, "start": 0.25}


@pytest.fixture
def weights() -> LatentWeights:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1))
    insert_quantizers(model, quantization("w4a16"))
    return LatentWeights(model)


@pytest.mark.parametrize(("part", "expected"), [("dampen", Dampening), ("freeze", Freezing)])
def test_the_shipped_presets_start(
    part: str, expected: type[Stabilizer], weights: LatentWeights
) -> None:
    training = method(part).training
    assert training is not None
    (chosen,) = training.stabilizers
    made = chosen.make(weights)
    assert type(made) is expected
    assert made.weights is weights


@pytest.mark.parametrize(
    ("implementation", "said"),
    [
        ("qatval.quant.nowhere:Class", "nowhere"),
        ("qatval.quant.dampening:Nothing", "Nothing"),
        ("qatval.quant.dampening", "'module:Class'"),
        (":Dampening", "'module:Class'"),
        ("qatval.quant.latent:LatentWeights", "subclass of Stabilizer"),
        ("qatval.quant.methods:method", "subclass of Stabilizer"),
    ],
)
def test_what_is_no_stabilizer_is_refused(
    implementation: str, said: str, weights: LatentWeights
) -> None:
    with pytest.raises(UsageError, match=said):
        StabilizerPart("own", implementation, {}).make(weights)


@pytest.mark.parametrize(
    ("implementation", "settings", "said"),
    [
        (DAMPENING, {}, "weight"),
        (DAMPENING, {"weight": 1e-2, "strength": 1.0}, "strength"),
        (DAMPENING, {"weight": "much"}, "settings"),
        (DAMPENING, {"weight": -1e-2}, "-0.01"),
        (FREEZING, {**FREEZING_SETTINGS, "momentum": 0.0}, "momentum"),
        (FREEZING, {**FREEZING_SETTINGS, "last_threshold": -0.1}, "-0.1"),
        (FREEZING, {**FREEZING_SETTINGS, "start": 1.0}, "start"),
        (FREEZING, {"momentum": 0.1}, "first_threshold"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    implementation: str, settings: dict[str, object], said: str, weights: LatentWeights
) -> None:
    with pytest.raises(UsageError, match=said):
        StabilizerPart("own", implementation, settings).make(weights)


def test_the_base_class_leaves_a_training_alone(weights: LatentWeights) -> None:
    for weight in weights.weights():
        weight.grad = torch.ones_like(weight)
    before = [weight.detach().clone() for weight in weights.weights()]
    idle = StabilizerPart("idle", "qatval.quant.stabilizing:Stabilizer", {}).make(weights)
    idle.before_step(0.5, 16)
    idle.after_step(0.6)
    assert idle.report() == {}
    for weight, same in zip(weights.weights(), before, strict=True):
        assert weight.grad is not None
        assert torch.equal(weight, same)
        assert torch.equal(weight.grad, torch.ones_like(weight))
