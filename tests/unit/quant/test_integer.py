"""The model of integer codes computes what the fake-quantized one computes, and comes back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import (
    LAYERS,
    W4A4,
    W4A16,
    float_model,
    images,
    layouts,
    quantized_model,
    shrinking,
    specs,
)
from torch import nn

from qatval.core.quantization import Quantization
from qatval.quant.fused import quantized_once
from qatval.quant.integer import (
    blank_integer_layer,
    integer_layers,
    share_differing,
    to_integer,
)


@settings(max_examples=40, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), shrink=shrinking, layout=layouts)
def test_integer_model_computes_the_same_bits(
    spec: Quantization, seed: int, shrink: float, layout: torch.memory_format
) -> None:
    model = quantized_model(spec, seed, shrink, layout).eval()
    integer = to_integer(model)
    expected = model(images(seed))
    assert torch.equal(integer(images(seed)), expected)
    with quantized_once(model):
        assert torch.equal(model(images(seed)), expected)
    layers = integer_layers(integer)
    assert tuple(layers) == LAYERS
    for name, layer in layers.items():
        assert layer.codes.dtype == torch.int8
        assert layer.levels_per_scale <= 2 ** spec.weight_bits(name) - spec.narrow_range
    assert not any(p.requires_grad for p in integer.parameters())


def test_inputs_take_no_more_values_than_their_bits_allow() -> None:
    model = quantized_model(dataclasses.replace(W4A4, activation_bit_width=3), shrink=0.2).eval()
    layers = integer_layers(to_integer(model))
    assert tuple(layers) == LAYERS
    for name, layer in layers.items():
        quantized = layer.quantized(torch.randn(20_000))
        assert quantized.unique().numel() == 8, name
        assert float(quantized.min()) == pytest.approx(-4 * float(layer.input_scale)), name


def test_integer_state_reloads_into_blank_layers() -> None:
    integer = to_integer(quantized_model(shrink=0.7).eval())
    tensors = integer.state_dict()
    assert tensors["0.conv.input_scale"].shape == ()
    assert tensors["0.conv.input_range"].tolist() == [-8, 7]
    other = float_model(seed=5).eval()
    for name, module in list(other.named_modules()):
        if isinstance(module, nn.Conv2d):
            there = f"{name}.input_scale" in tensors
            blank = blank_integer_layer(module, tensors[f"{name}.scale"], quantized_input=there)
            other.set_submodule(name, blank)
    other.load_state_dict(tensors)
    assert torch.equal(other(images()), integer(images()))


def test_float_inputs_add_nothing_to_the_integer_state() -> None:
    state = to_integer(quantized_model(W4A16).eval()).state_dict()
    assert "0.conv.codes" in state
    assert not [key for key in state if "input" in key]


def test_weights_that_are_not_finite_have_no_codes() -> None:
    model = quantized_model(W4A16)
    model[0].conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'0\.conv' has weights or scales that are not finite"):
        to_integer(model)


def test_share_differing_counts_weights() -> None:
    model = quantized_model(W4A16)
    a, b = to_integer(model), to_integer(model)
    layers = integer_layers(b)
    layers["2"].codes[0, :2] += 1
    weights = sum(layer.codes.numel() for layer in layers.values())
    assert share_differing(a, a) == 0.0
    assert share_differing(a, b) == pytest.approx(2 / weights)
    with pytest.raises(ValueError, match="differ in layers"):
        share_differing(a, a[:2])
