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
from tests.unit.quant.conftest import (
    LAYERS,
    W4A4,
    W4A16,
    float_model,
    gradients,
    images,
    layouts,
    quantized_model,
    shrinking,
    specs,
)
from torch import Tensor, nn

from qatval.core.quantization import Quantization
from qatval.quant.fused import FusedQuantizer, fuse_quantization, quantized_once
from qatval.quant.latent import LatentWeights, flatten
from qatval.quant.quantized_conv import codes_and_scale, quantized_layers, scale_parameters


def weights_only(shrink: float = 1.0) -> nn.Sequential:
    """A model in training mode whose activations stay in float."""
    return quantized_model(W4A16, shrink=shrink).train()


@settings(max_examples=60, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), shrink=shrinking, layout=layouts)
def test_fused_training_equals_brevitas(
    spec: Quantization, seed: int, shrink: float, layout: torch.memory_format
) -> None:
    """Output, every gradient and the kept codes, to the last bit, however tensors lie in memory."""
    model = quantized_model(spec, seed, shrink, layout).train()
    x = images(seed, layout)
    out, wanted = gradients(model, x)
    codes = [flatten(codes_and_scale(layer)[0]) for _, layer in quantized_layers(model)]
    quantizer = fuse_quantization(model, capture=True)  # the same model: copies are expensive
    same, found = gradients(model, x)
    assert torch.equal(out, same)
    assert found.keys() == wanted.keys() >= {"input", "0.conv.weight", "2.bias"}
    for name, grad in wanted.items():
        assert torch.equal(found[name], grad), name
    assert torch.equal(quantizer.codes, torch.cat(codes))


@settings(max_examples=40, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), shrink=shrinking, layout=layouts)
def test_weights_joined_by_grid_equal_brevitas(
    spec: Quantization, seed: int, shrink: float, layout: torch.memory_format
) -> None:
    """The form for GPUs: everything to the last bit but the sums of scales, in another order."""
    model = quantized_model(spec, seed, shrink, layout)
    layers = [layer for _, layer in quantized_layers(model)]
    upstream = [torch.randn_like(layer.weight) for layer in layers]
    expected = [layer.quant_weight().value for layer in layers]
    torch.autograd.backward(expected, upstream)
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    joined = FusedQuantizer(model, capture=True, flat=True)
    found = joined.quantize()
    torch.autograd.backward(found, upstream)

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert wanted.keys() >= {"0.conv.weight", "2.weight"}
    # Where scales are statistics, their gradients go on to the largest weights.
    learned = spec.scaling == "learned"
    summed = {id(p) for p in (scale_parameters(model) if learned else model.parameters())}
    for name, grad in wanted.items():
        parameter = model.get_parameter(name)
        assert parameter.grad.shape == grad.shape
        rounding = 1e-5 if id(parameter) in summed else 0.0
        assert torch.allclose(parameter.grad, grad, rtol=rounding, atol=rounding), name
    assert torch.equal(joined.codes, LatentWeights(model).flat_codes())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_quantizing_and_training_keep_the_layout(layout: torch.memory_format) -> None:
    expected = {n: p.stride() for n, p in float_model(layout=layout).named_parameters()}
    model = quantized_model(layout=layout).train()
    fuse_quantization(model)
    gradients(model, images(layout=layout))
    for name, stride in expected.items():
        parameter = model.get_parameter(name)
        assert parameter.stride() == stride
        assert parameter.grad is not None
        assert parameter.grad.is_contiguous(memory_format=layout) or parameter.dim() < 4


def test_a_layer_of_zeros_has_codes() -> None:
    model = quantized_model(dataclasses.replace(W4A4, scaling="statistics"))
    with torch.no_grad():
        model[1].conv.weight.zero_()
    fused = FusedQuantizer(model, flat=False)
    assert torch.equal(fused.quantize()[1], torch.zeros_like(model[1].conv.weight))


@pytest.mark.parametrize("shrink", [1.0, 0.5])
def test_training_steps_equal_brevitas(shrink: float) -> None:
    brevitas = weights_only(shrink)
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
    brevitas = weights_only()
    fused = copy.deepcopy(brevitas)
    fuse_quantization(fused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, wanted = gradients(brevitas, images())
        same, found = gradients(fused, images())
    assert torch.equal(out, same)
    assert all(torch.equal(found[name], grad) for name, grad in wanted.items())
    assert {grad.dtype for grad in found.values()} == {torch.float32}


def test_layers_are_their_own_but_during_a_training_forward() -> None:
    model = weights_only()
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
    model = weights_only()
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
    model = weights_only()
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
    model = weights_only()
    fuse_quantization(model)
    model(images())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for _, layer in quantized_layers(other):
            layer.weight.neg_()
    own = weights_only()
    with torch.no_grad():
        for _, layer in quantized_layers(own):
            layer.weight.neg_()
    assert torch.equal(other(images()), own(images()))
    assert not any("forward" in layer.__dict__ for _, layer in quantized_layers(other))


def test_a_forward_that_fails_leaves_the_layers_alone() -> None:
    model = weights_only()
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
    model = weights_only()
    fuse_quantization(model)
    model(images()).sum().backward()
    gc.collect()
    assert [weight() for weight in seen] == [None] * len(LAYERS)


def test_a_model_without_quantizers_is_refused() -> None:
    with pytest.raises(ValueError, match="no quantized layer"):
        FusedQuantizer(nn.Sequential(nn.Conv2d(1, 1, 1)))
