"""Inserted quantizers against an independent reference, bit for bit; what becomes of each layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import W4A4, W4A16, float_model, images, quantized_model
from torch import Tensor, nn

from qatval.core.errors import QatvalError
from qatval.core.quantization import Quantization, ScaleGranularity
from qatval.quant.integer import share_differing, to_integer
from qatval.quant.layers import batchnorm_after, coverage, insert_quantizers
from qatval.quant.quantized_conv import codes_and_scale, quantized_layers, scale_parameters


def code_range(bits: int, narrow: bool) -> tuple[int, int]:
    """Signed two's complement, without the most negative code where the range is narrow."""
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1


def reference_codes(weight: Tensor, spec: Quantization, per_channel: bool) -> tuple[Tensor, Tensor]:
    """LSQ's grid in plain torch: scale max|w| / n, round half to even, clamp."""
    low, high = code_range(spec.weight_bit_width, spec.narrow_range)
    flat = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max()
    # Brevitas divides by the magnitude of the grid's far end: 7 where it is narrow, else 8.
    scale = flat / max(-low, high)
    if per_channel:
        scale = scale.reshape(-1, 1, 1, 1)
    return torch.clamp(torch.round(weight / scale), low, high), scale


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    out=st.integers(1, 9),
    groups=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    magnitude=st.sampled_from([1e-4, 0.05, 1.0, 300.0]),
    bits=st.integers(2, 8),
    narrow=st.booleans(),
    has_bn=st.booleans(),
    granularity=st.sampled_from(["per-tensor", "per-channel"]),
)
def test_forward_equals_the_reference(
    seed: int,
    out: int,
    groups: int,
    kernel: int,
    magnitude: float,
    bits: int,
    narrow: bool,
    has_bn: bool,
    granularity: ScaleGranularity,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = dataclasses.replace(W4A16, weight_bit_width=bits, narrow_range=narrow, scale=granularity)
    conv = nn.Conv2d(2 * groups, out * groups, kernel, groups=groups, bias=False)
    model = nn.Sequential()
    model.add_module("conv", conv)
    if has_bn:
        model.add_module("bn", nn.BatchNorm2d(out * groups))
    weight = torch.randn(conv.weight.shape, generator=generator) * magnitude
    conv.weight.data.copy_(weight)
    codes, scale = reference_codes(
        weight, spec, per_channel=not has_bn or granularity == "per-channel"
    )
    x = torch.randn(2, 2 * groups, 6, 6, generator=generator)
    expected = nn.functional.conv2d(x, codes * scale, groups=groups)

    insert_quantizers(model, spec)

    ((_, layer),) = quantized_layers(model)
    found, found_scale = codes_and_scale(layer)
    assert torch.equal(found.float(), codes)
    assert torch.equal(found_scale.reshape(scale.shape), scale)
    assert torch.equal(layer(x), expected)


def test_every_convolution_is_quantized_and_keeps_its_weight() -> None:
    model = float_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    layers = insert_quantizers(model, W4A16)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert layers == coverage(model, W4A16)
    assert [layer.bits for layer in layers] == [4, 4, 4]
    assert [layer.scale for layer in layers] == ["per-channel"] * 3


def test_boundary_layers_have_their_own_bits() -> None:
    spec = dataclasses.replace(
        W4A4,
        weight_bit_width=3,
        activation_bit_width=5,
        boundary=("0.*", "2"),
        boundary_bit_width=8,
    )
    model = quantized_model(spec)
    layers = coverage(model, spec)
    assert [(layer.bits, layer.activation_bits) for layer in layers] == [
        (8, 8),
        (3, 5),
        (8, 8),
    ]
    for name, layer in quantized_layers(model):
        codes, _ = codes_and_scale(layer)
        assert int(codes.abs().max()) == (127 if name in ("0.conv", "2") else 3)


def test_exempt_layers_stay_in_float_with_their_reason() -> None:
    """Their inputs too."""
    spec = dataclasses.replace(W4A4, exempt={"1.conv": "a reason"})
    model = float_model()
    insert_quantizers(model, spec)
    assert type(model[1].conv) is nn.Conv2d
    (exempt,) = [layer for layer in coverage(model, spec) if layer.reason]
    assert (exempt.name, exempt.reason) == ("1.conv", "a reason")
    assert (exempt.bits, exempt.activation_bits) == (None, None)


@pytest.mark.parametrize(
    "layer", [nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 3), nn.Conv1d(1, 1, 1)]
)
def test_a_layer_that_cannot_be_quantized_fails(layer: nn.Module) -> None:
    with pytest.raises(QatvalError, match=r"layer '0' .* neither quantized nor on the exemption"):
        insert_quantizers(nn.Sequential(layer), W4A16)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (W4A4, 6),
        (W4A16, 3),
        (dataclasses.replace(W4A4, scaling="statistics"), 3),
        (dataclasses.replace(W4A16, scaling="statistics"), 0),
    ],
)
def test_scales_are_parameters_from_the_start(spec: Quantization, count: int) -> None:
    model = float_model()
    insert_quantizers(model, spec)
    keys = {key for key in model.state_dict() if key.endswith("scaling_impl.value")}
    scales = scale_parameters(model)
    assert {name for name, p in model.named_parameters() if p in scales} == keys
    assert len(keys) == len(scales) == count


def test_statistics_follow_the_weights() -> None:
    model = quantized_model(dataclasses.replace(W4A4, scaling="statistics"))
    layer = model[1].conv
    _, before = codes_and_scale(layer)
    with torch.no_grad():
        layer.weight.mul_(3.0)
    _, after = codes_and_scale(layer)
    assert torch.allclose(after, 3.0 * before)


@pytest.mark.parametrize("scaling", ["learned", "statistics"])
def test_state_dict_reloads_into_a_fresh_model(scaling: Any) -> None:
    spec = dataclasses.replace(W4A4, scaling=scaling, boundary=("0.*",), boundary_bit_width=8)
    model = quantized_model(spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():  # as training would move them
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.mul_(0.6 + noise).add_(0.1 * noise)
    other = float_model(seed=5)
    insert_quantizers(other, spec)
    other.load_state_dict(model.state_dict())
    assert share_differing(to_integer(model), to_integer(other)) == 0.0
    assert torch.equal(other.eval()(images()), model.eval()(images()))


def test_gradient_is_straight_through_inside_the_grid() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    insert_quantizers(model, W4A16)
    ((_, layer),) = quantized_layers(model)
    with torch.no_grad():
        layer.weight.fill_(0.3)
    for scale in scale_parameters(model):
        scale.data.fill_(0.7)  # grid step 0.1: the weight is on code 3
    layer(torch.ones(1, 1, 1, 1)).sum().backward()
    assert torch.allclose(layer.weight.grad, torch.ones_like(layer.weight))


def test_batchnorm_after_finds_the_sibling_only() -> None:
    model = float_model()
    assert batchnorm_after(model, "0.conv") is model[0].bn
    assert batchnorm_after(model, "2") is None
