"""All weights quantized at once against Brevitas' own modules: values, gradients, side effects."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from brevitas.nn import QuantConv2d
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qatval.core.presets import quantization
from qatval.quant.fused import FusedQuantizer, fuse_quantization, quantized_once
from qatval.quant.layers import insert_quantizers, quantized_layers, scale_parameters

SPEC = quantization("w4a16")


class Block(nn.Module):
    def __init__(self, inp: int, out: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(self.bn(self.conv(x)))


def quantized_model(
    seed: int = 0, bits: int = 4, narrow: bool = True, shrink: float = 1.0
) -> nn.Sequential:
    """Per-tensor, depthwise and per-channel layers; below 1, ``shrink`` clamps weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(Block(3, 8, 3), Block(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1))
    insert_quantizers(model, dataclasses.replace(SPEC, weight_bit_width=bits, narrow_range=narrow))
    with torch.no_grad():
        for scale in scale_parameters(model):
            scale.mul_(shrink)
    return model.train()


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(x)
    out.pow(2).mean().backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    narrow=st.booleans(),
    shrink=st.sampled_from([-1.0, 0.3, 0.9, 1.0, 2.0]),
    flat=st.booleans(),
)
def test_weights_and_gradients_equal_brevitas(
    seed: int, bits: int, narrow: bool, shrink: float, flat: bool
) -> None:
    """Layer by layer to the last bit; over one tensor, sums differ in their order alone."""
    model = quantized_model(seed, bits, narrow, shrink)
    layers = [layer for _, layer in quantized_layers(model)]
    scales = [layer.weight_quant.tensor_quant.scaling_impl.value for layer in layers]
    weights = [layer.weight for layer in layers]
    upstream = [torch.randn_like(weight) for weight in weights]

    expected = [layer.quant_weight().value for layer in layers]
    torch.autograd.backward(expected, upstream)
    wanted = [p.grad.clone() for p in (*weights, *scales)]
    model.zero_grad()
    found = FusedQuantizer(model, flat=flat).quantize()
    torch.autograd.backward(found, upstream)

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for parameter, grad in zip((*weights, *scales), wanted, strict=True):
        assert parameter.grad.shape == parameter.shape
        rounding = 1e-5 if flat and parameter in set(scales) else 0.0
        assert torch.allclose(parameter.grad, grad, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("shrink", [1.0, 0.5])
def test_training_steps_equal_brevitas(shrink: float) -> None:
    brevitas = quantized_model(shrink=shrink)
    fused = copy.deepcopy(brevitas)
    fuse_quantization(fused)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (brevitas, fused)]
    for step in range(5):
        for model, optimizer in zip((brevitas, fused), optimizers, strict=True):
            gradients(model, images(step))
            optimizer.step()
    state = fused.state_dict()
    assert state.keys() == brevitas.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in brevitas.state_dict().items())


def test_mixed_precision_quantizes_in_float32() -> None:
    brevitas = quantized_model()
    fused = copy.deepcopy(brevitas)
    fuse_quantization(fused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, wanted = gradients(brevitas, images())
        same, found = gradients(fused, images())
    assert torch.equal(out, same)
    assert all(torch.equal(found[name], grad) for name, grad in wanted.items())
    assert {grad.dtype for grad in found.values()} == {torch.float32}


def test_layers_are_their_own_but_during_a_training_forward() -> None:
    model = quantized_model()
    keys = model.state_dict().keys()
    fuse_quantization(model)
    calls = []
    layer = next(layer for _, layer in quantized_layers(model))
    layer.weight_quant.register_forward_hook(lambda *_: calls.append(1))
    model(images())
    assert not calls
    assert not any("forward" in layer.__dict__ for _, layer in quantized_layers(model))
    model.eval()(images())
    assert calls
    assert model.state_dict().keys() == keys


def test_weights_can_be_quantized_once_for_several_forwards() -> None:
    model = quantized_model()
    fuse_quantization(model)
    layer = next(layer for _, layer in quantized_layers(model))
    calls = []
    layer.weight_quant.register_forward_hook(lambda *_: calls.append(1))
    model.eval()
    expected = [model(images(seed)) for seed in range(3)]
    assert len(calls) == 3
    with quantized_once(model):
        found = [model(images(seed)) for seed in range(3)]
    assert len(calls) == 4
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "forward" not in layer.__dict__


def test_a_float_model_has_nothing_to_quantize_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    expected = model(images())
    with quantized_once(model):
        assert torch.equal(model(images()), expected)


def test_codes_are_kept_only_if_asked_for() -> None:
    model = quantized_model()
    assert fuse_quantization(copy.deepcopy(model)).codes.numel() == 0
    quantizer = fuse_quantization(model, capture=True)
    with torch.no_grad():
        for _, layer in quantized_layers(model):
            layer.weight.neg_()
    before = quantizer.codes.clone()
    model.eval()(images())
    assert torch.equal(quantizer.codes, before)
    model.train()(images())
    assert quantizer.codes.any()
    assert torch.equal(quantizer.codes, -before)


def test_a_copy_quantizes_its_own_weights() -> None:
    model = quantized_model()
    fuse_quantization(model)
    model(images())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for _, layer in quantized_layers(other):
            layer.weight.neg_()
    own = quantized_model()
    with torch.no_grad():
        for _, layer in quantized_layers(own):
            layer.weight.neg_()
    assert torch.equal(other(images()), own(images()))
    assert not any("forward" in layer.__dict__ for _, layer in quantized_layers(other))


def test_a_forward_that_fails_leaves_the_layers_alone() -> None:
    model = quantized_model()
    fuse_quantization(model)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 4, 8, 8))
    assert not any("forward" in layer.__dict__ for _, layer in quantized_layers(model))


def test_a_step_leaves_no_quantized_weight_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    convolve = QuantConv2d._conv_forward

    def spy(layer: QuantConv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(weakref.ref(weight))
        return convolve(layer, x, weight, bias)

    monkeypatch.setattr(QuantConv2d, "_conv_forward", spy)
    model = quantized_model()
    fuse_quantization(model)
    model(images()).sum().backward()
    gc.collect()
    assert [weight() for weight in seen] == [None] * 3


def test_a_model_without_quantizers_is_refused() -> None:
    with pytest.raises(ValueError, match="no quantized layer"):
        FusedQuantizer(nn.Sequential(nn.Conv2d(1, 1, 1)))
