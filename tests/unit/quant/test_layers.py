"""Inserted quantizers against an independent reference, bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qatval.core.errors import QatvalError
from qatval.core.presets import quantization
from qatval.core.quantization import Quantization, ScaleGranularity
from qatval.quant.integer import IntegerConv2d, integer_layers, share_differing, to_integer
from qatval.quant.layers import (
    batchnorm_after,
    codes_and_scale,
    coverage,
    insert_quantizers,
    quantized_layers,
    scale_parameters,
)

SPEC = quantization("w4a16")


class Block(nn.Module):
    """A convolution with its BatchNorm, named as Ultralytics names them."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs, bias=False)
        self.bn = nn.BatchNorm2d(args[1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


def small_model() -> nn.Sequential:
    """Plain, strided, depthwise and BN-less convolutions."""
    return nn.Sequential(
        Block(3, 8, 3, padding=1),
        Block(8, 8, 3, padding=1, groups=8),
        Block(8, 6, 3, stride=2),
        nn.Conv2d(6, 4, 1),
    )


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
    spec = dataclasses.replace(SPEC, weight_bit_width=bits, narrow_range=narrow, scale=granularity)
    block = Block(2 * groups, out * groups, kernel, groups=groups)
    model = nn.Sequential(block if has_bn else block.conv).eval()
    weight = torch.randn(block.conv.weight.shape, generator=generator) * magnitude
    block.conv.weight.data.copy_(weight)
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
    model = small_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    insert_quantizers(model, SPEC)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    layers = coverage(model, SPEC)
    assert [layer.bits for layer in layers] == [4, 4, 4, 4]
    assert [layer.scale for layer in layers] == ["per-channel"] * 4


def test_scales_are_parameters_from_the_start() -> None:
    model = small_model()
    insert_quantizers(model, SPEC)
    keys = [key for key in model.state_dict() if key.endswith("scaling_impl.value")]
    assert len(keys) == len(scale_parameters(model)) == 4


def test_state_dict_reloads_into_a_fresh_model() -> None:
    model, other = small_model(), small_model()
    insert_quantizers(model, SPEC)
    insert_quantizers(other, SPEC)
    with torch.no_grad():
        for scale in scale_parameters(model):
            scale.mul_(0.7)  # as training would move it
    other.load_state_dict(model.state_dict())
    assert share_differing(to_integer(model), to_integer(other)) == 0.0
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_exempt_layers_stay_in_float_with_their_reason() -> None:
    spec = dataclasses.replace(SPEC, exempt={"3": "an output"})
    model = small_model()
    insert_quantizers(model, spec)
    assert type(model[3]) is nn.Conv2d
    last = coverage(model, spec)[-1]
    assert (last.name, last.bits, last.reason) == ("3", None, "an output")


@pytest.mark.parametrize(
    "layer", [nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 3), nn.Conv1d(1, 1, 1)]
)
def test_a_layer_that_cannot_be_quantized_fails(layer: nn.Module) -> None:
    with pytest.raises(QatvalError, match=r"layer '0' .* neither quantized nor on the exemption"):
        insert_quantizers(nn.Sequential(layer), SPEC)


def test_gradient_is_straight_through_inside_the_grid() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    insert_quantizers(model, SPEC)
    ((_, layer),) = quantized_layers(model)
    with torch.no_grad():
        layer.weight.fill_(0.3)
    for scale in scale_parameters(model):
        scale.data.fill_(0.7)  # grid step 0.1: the weight is on code 3
    layer(torch.ones(1, 1, 1, 1)).sum().backward()
    assert torch.allclose(layer.weight.grad, torch.ones_like(layer.weight))


def test_batchnorm_after_finds_the_sibling_only() -> None:
    model = small_model()
    assert batchnorm_after(model, "0.conv") is model[0].bn
    assert batchnorm_after(model, "3") is None


def test_integer_model_computes_the_same_bits() -> None:
    model = small_model().eval()
    insert_quantizers(model, SPEC)
    integer = to_integer(model)
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(integer(x), model(x))
    frozen = [m for m in integer.modules() if isinstance(m, IntegerConv2d)]
    assert all(m.codes.dtype == torch.int8 and m.levels_per_scale <= 16 for m in frozen)
    assert not any(p.requires_grad for p in integer.parameters())


def test_weights_that_are_not_finite_have_no_codes() -> None:
    model = small_model()
    insert_quantizers(model, SPEC)
    model[0].conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'0\.conv' has weights or scales that are not finite"):
        to_integer(model)


def test_share_differing_counts_weights() -> None:
    model = small_model()
    insert_quantizers(model, SPEC)
    a, b = to_integer(model), to_integer(model)
    layers = integer_layers(b)
    layers["3"].codes[0, :2] += 1
    weights = sum(layer.codes.numel() for layer in layers.values())
    assert share_differing(a, a) == 0.0
    assert share_differing(a, b) == pytest.approx(2 / weights)
    with pytest.raises(ValueError, match="differ in layers"):
        share_differing(a, a[:2])
