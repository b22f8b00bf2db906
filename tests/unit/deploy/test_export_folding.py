"""BatchNorm folded into scales: the same function, the same codes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qatval.deploy.export.folding import folded
from qatval.quant.integer import IntegerConv2d


class Block(nn.Module):
    """As Ultralytics' blocks are: the children `conv` and `bn`."""

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = conv, bn

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(self.conv(x))
        return result


def batchnorm(channels: int) -> nn.BatchNorm2d:
    """One whose factors have both signs."""
    bn = nn.BatchNorm2d(channels)
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.1, 2.0)
    return bn


def integer(conv: nn.Conv2d, scale: Tensor, **of_input: Tensor) -> IntegerConv2d:
    codes = torch.randint(-7, 8, conv.weight.shape, dtype=torch.int8)
    return IntegerConv2d(conv, codes, scale, **of_input)


@pytest.fixture
def model() -> nn.Sequential:
    """Depthwise with one scale, strided and biased with one per channel, and a head's output."""
    torch.manual_seed(0)
    rounding = {"input_scale": torch.tensor(0.1), "input_range": torch.tensor([-8, 7])}
    return nn.Sequential(
        Block(integer(nn.Conv2d(4, 4, 3, groups=4, bias=False), torch.tensor(0.05)), batchnorm(4)),
        Block(integer(nn.Conv2d(4, 6, 3, 2, 1), torch.rand(6, 1, 1, 1) + 0.1), batchnorm(6)),
        Block(nn.Conv2d(6, 6, 1, bias=False), batchnorm(6)),
        integer(nn.Conv2d(6, 3, 1), torch.rand(3, 1, 1, 1), **rounding),
    ).eval()


def without_rounding(model: Any) -> Any:
    copied = copy.deepcopy(model)
    copied[3].input_scale = copied[3].input_range = None
    return copied


def test_the_folded_model_computes_the_same(model: nn.Sequential) -> None:
    plain, _ = folded(model)
    x = torch.randn(2, 4, 9, 9)
    wanted = without_rounding(model)(x).detach()
    assert torch.allclose(plain(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert not any(isinstance(m, nn.BatchNorm2d | IntegerConv2d) for m in plain.modules())


def test_codes_stay_and_scales_take_the_factor(model: nn.Sequential) -> None:
    _, layers = folded(model)
    assert list(layers) == ["0.conv", "1.conv", "3"]
    for name, layer in layers.items():
        original = model.get_submodule(name)
        assert torch.equal(layer.codes, original.codes)
        assert layer.scale.shape == (len(layer.codes),)
    bn: Any = model[0].bn
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    assert torch.equal(layers["0.conv"].scale, 0.05 * factor)
    assert (layers["0.conv"].scale < 0).any()
    assert torch.equal(layers["3"].scale, model[3].scale.flatten())


def test_a_plain_model_holds_exactly_codes_times_scales(model: nn.Sequential) -> None:
    plain, layers = folded(model)
    for name, layer in layers.items():
        assert torch.equal(plain.get_submodule(name).weight, layer.weight)


def test_what_rounds_an_input_is_taken_along(model: nn.Sequential) -> None:
    _, layers = folded(model)
    grid = layers["3"].input
    assert grid is not None
    assert (float(grid.scale), grid.low, grid.high) == (pytest.approx(0.1), -8, 7)
    assert layers["0.conv"].input is None


def test_the_model_is_left_as_it_is(model: nn.Sequential) -> None:
    before = copy.deepcopy(model.state_dict())
    folded(model)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
