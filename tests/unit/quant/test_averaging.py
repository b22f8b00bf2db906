"""The moving average against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from brevitas.nn import QuantConv2d
from brevitas.quant.scaled_int import Int4WeightPerTensorFloatDecoupled
from tests.unit.quant.conftest import LAYERS, W4A16, images, quantized_model
from torch import nn
from ultralytics.utils.torch_utils import ModelEMA

from qatval.core.errors import UsageError
from qatval.quant.averaging import WeightAverage
from qatval.quant.fused import fuse_quantization
from qatval.quant.integer import integer_layers, share_differing, to_integer
from qatval.quant.layers import insert_quantizers
from qatval.quant.methods.averaging import Averaging
from qatval.quant.quantized_conv import input_scale, quantized_layers, scale_parameters


def a_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    insert_quantizers(model, W4A16)
    return model


def disturb(model: nn.Module, seed: int) -> None:
    """Change everything floating, as a training step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.dtype.is_floating_point:
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def test_every_tensor_follows_the_recurrence() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.9, tau=3.0)
    expected = {k: v.clone().double() for k, v in model.state_dict().items()}
    assert any(key.endswith("scaling_impl.value") for key in expected)
    for step in range(1, 8):
        disturb(model, step)
        average.update(model)
        d = 0.9 * (1 - math.exp(-step / 3.0))
        assert average.effective_decay == pytest.approx(d)
        for name, value in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * value.double()
    for name, value in average.ema.state_dict().items():
        if value.dtype.is_floating_point:
            assert torch.allclose(value.double(), expected[name], atol=1e-5), name
        else:
            assert torch.equal(value, model.state_dict()[name]), name


def test_decay_zero_is_an_exact_copy() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.0, tau=1.0)
    for step in range(5):
        disturb(model, step)
        average.update(model)
        for name, value in model.state_dict().items():
            assert torch.equal(average.ema.state_dict()[name], value), name


def test_a_scale_that_changes_its_sign_keeps_its_magnitude_in_the_average() -> None:
    """The forward computes with the magnitude, so the model is the same and so is its average."""
    model = a_model()
    average = WeightAverage(model, 0.9, 1e-9, scale_parameters(model))
    before = to_integer(average.ema)
    for sign in (-1.0, -1.0, 1.0, -1.0):
        with torch.no_grad():
            for scale in scale_parameters(model):
                scale.abs_().mul_(sign)
        average.update(model)
    assert share_differing(before, to_integer(average.ema)) == 0.0
    for name, layer in integer_layers(to_integer(average.ema)).items():
        assert torch.allclose(layer.scale, integer_layers(before)[name].scale)


def test_a_tensor_that_appears_later_is_an_error() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.9, tau=1.0)
    model.register_parameter("late", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="late"):
        average.update(model)


def test_the_followed_model_is_untouched() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.9, tau=1.0)
    disturb(model, 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    average.update(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not average.ema.training


def test_the_average_follows_the_scales_of_activations() -> None:
    model = quantized_model()
    start = {n: v.clone().double() for n, v in model.state_dict().items() if "input_quant" in n}
    average = WeightAverage(model, decay=0.5, tau=1e-9)
    for _ in range(2):
        with torch.no_grad():
            for scale in scale_parameters(model):
                scale.mul_(2.0)
        average.update(model)
    state = average.ema.state_dict()
    assert len(start) == len(LAYERS)
    for name, value in start.items():
        assert float(state[name]) == pytest.approx(float(value) * (0.25 + 0.5 + 2.0))


def test_training_moves_the_scales_of_activations() -> None:
    model = quantized_model()
    before = [input_scale(layer) for _, layer in quantized_layers(model)]
    fuse_quantization(model.train())
    average = WeightAverage(model, decay=0.9, tau=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        model(images(step)).pow(2).mean().backward()
        optimizer.step()
        average.update(model)
    after = [input_scale(layer) for _, layer in quantized_layers(model)]
    ema = [input_scale(layer) for _, layer in quantized_layers(average.ema)]
    assert len(before) == len(LAYERS)
    for a, b, c in zip(before, after, ema, strict=True):
        assert not torch.equal(a, b)
        assert min(a, b) < c < max(a, b)


PRESET = Averaging("ema", max_decay=0.9999, max_tau=2000.0, window=0.2, ramp=0.1)


@pytest.mark.parametrize(
    ("steps", "decay", "tau"),
    [
        (100, 0.95, 10.0),  # a window of 20 steps
        (16, 1 - 1 / 3.2, 1.6),
        (739_300, 0.9999, 2000.0),  # the paper's, where the run is long enough
        (1, 0.0, 0.1),  # a window cannot be shorter than a step
    ],
)
def test_horizon_follows_the_length_of_the_run(steps: int, decay: float, tau: float) -> None:
    assert PRESET.for_steps(steps) == pytest.approx((decay, tau))


@pytest.mark.parametrize("change", [{"max_decay": 1.0}, {"max_decay": -0.1}, {"window": 0.0}])
def test_impossible_averaging_is_refused(change: dict[str, float]) -> None:
    values = {"max_decay": 0.9, "max_tau": 1.0, "window": 0.2, "ramp": 0.1, **change}
    with pytest.raises(UsageError):
        Averaging("ema", **values)


def test_the_average_of_ultralytics_leaves_scales_that_brevitas_has_not_set_yet() -> None:
    """What docs/collapse.md says of it: a newer version may do better."""
    model = nn.Sequential(QuantConv2d(2, 3, 3, weight_quant=Int4WeightPerTensorFloatDecoupled))

    def scale_of(model: nn.Module) -> float:
        return float(model[0].weight_quant.tensor_quant.scaling_impl.value.detach())

    average = ModelEMA(model, decay=0.5, tau=0.1)
    pixels = images(1)[:, :2]
    model(pixels)
    average.update(model)
    average.ema(pixels)
    first = scale_of(average.ema)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(5.0)
    for _ in range(20):
        average.update(model)
    assert torch.allclose(average.ema[0].weight, model[0].weight)
    assert scale_of(model) == 5.0
    assert scale_of(average.ema) == first < 1.0
