"""Quantized numbers and their gradients against the published formulas."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.unit.quant.conftest import W4A4, Block
from torch import Tensor, nn

from qatval.quant.fused import fuse_quantization
from qatval.quant.layers import insert_quantizers


def lsq(x: Tensor, scale: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Esser et al., ICLR 2020, equations 1, 2, 5 and 3, by element: x^, dx^ / dx, dx^ / ds."""
    ratio = x / scale
    rounded = ratio.round()
    inside = (low < ratio) & (ratio < high)
    to_scale = torch.where(inside, rounded - ratio, ratio.clamp(low, high))
    return ratio.clamp(low, high).round() * scale, inside.double(), to_scale


def numbers(scale: float, low: int, high: int) -> Tensor:
    """Between and beyond the codes, but for the half step outside of which `lsq` says more."""
    ratio = torch.linspace(low - 4.003, high + 4.1, 1001, dtype=torch.float64)  # no ties
    beside = ((ratio > high - 1e-6) & (ratio < high + 0.51)) | (
        (ratio < low + 1e-6) & (ratio > low - 0.51)
    )
    return (ratio[~beside] * scale).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_of_weights_are_lsq(bits: int) -> None:
    spec = dataclasses.replace(W4A4, weight_bit_width=bits, narrow_range=False)
    low, high, scale = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.03125
    values = numbers(scale, low, high)
    model: Any = nn.Sequential(Block(1, 1))
    model[0].conv = nn.Conv2d(1, 1, (1, values.numel()), bias=False)
    insert_quantizers(model, spec)
    model.double()
    layer = model[0].conv
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    with torch.no_grad():
        layer.weight.copy_(values)
        value.fill_(scale * 2 ** (bits - 1))
    upstream = torch.randn(values.shape, dtype=torch.float64)
    expected, to_weight, to_scale = lsq(values, torch.tensor(scale).double(), low, high)

    quantized = layer.quant_weight().value
    (quantized * upstream).sum().backward()

    assert torch.allclose(quantized, expected)
    assert torch.allclose(layer.weight.grad, upstream * to_weight)
    # The parameter is the scale times the magnitude of the lowest code.
    assert torch.allclose(value.grad * 2 ** (bits - 1), (upstream * to_scale).sum())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_of_activations_are_lsq(bits: int, fused: bool) -> None:
    spec = dataclasses.replace(W4A4, activation_bit_width=bits)
    low, high, scale = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.03125
    x = numbers(scale, low, high).requires_grad_()
    model: Any = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    insert_quantizers(model, spec)
    model.double().train()
    value = model[0].input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value
    with torch.no_grad():
        value.fill_(scale * 2 ** (bits - 1))
    if fused:
        fuse_quantization(model)
    upstream = torch.randn(x.shape, dtype=torch.float64)
    expected, to_x, to_scale = lsq(x.detach(), torch.tensor(scale).double(), low, high)
    weight = model[0].quant_weight().value.detach()

    (model(x) * upstream / weight).sum().backward()

    assert torch.allclose(model(x.detach()), expected * weight)
    assert torch.allclose(x.grad, upstream * to_x)
    assert torch.allclose(value.grad * 2 ** (bits - 1), (upstream * to_scale).sum())


def test_what_rounds_to_the_last_code_is_inside() -> None:
    """[G] clips after rounding, LSQ before: they differ within half a step beyond the grid."""
    model: Any = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    insert_quantizers(model, W4A4)
    with torch.no_grad():
        value = model[0].input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value
        value.fill_(8.0)  # a step of one
    x = torch.tensor([[[[7.4, 7.6, -8.4, -8.6]]]], requires_grad=True)
    model[0].input_quant(x).value.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]
