"""Quantization correction: identity at the start, only gamma and beta train, exact folds."""

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
    quantized_model,
    specs,
)
from torch import nn

from qatval.core.errors import QatvalError
from qatval.core.quantization import Quantization
from qatval.quant.correction import (
    CorrectedConv2d,
    attach_corrections,
    corrections,
    fold_corrections,
)
from qatval.quant.integer import integer_layers, to_integer
from qatval.quant.layers import insert_quantizers, quantizable

SPREADS = [0.01, 0.3, 1.5]  # of gammas about one; the last makes a quarter of them negative


def lived_in(model: nn.Module) -> nn.Module:
    """Return a model with other BatchNorms than new ones, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
    return model.eval()


def integer_model(spec: Quantization = W4A16, seed: int = 0, shrink: float = 1.0) -> nn.Module:
    return to_integer(lived_in(quantized_model(spec, seed, shrink)))


@torch.no_grad()
def perturb(corrected: nn.Module, seed: int, spread: float) -> None:
    """Move every gamma and beta at random."""
    generator = torch.Generator().manual_seed(seed)
    for _, correction in corrections(corrected):
        for parameter in (correction.gamma, correction.beta):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)


def test_starts_at_the_identity() -> None:
    model = integer_model()
    corrected = attach_corrections(model)
    assert torch.allclose(corrected(images()), model(images()), atol=1e-6)
    assert len(list(corrections(corrected))) == len(LAYERS)


def test_only_gamma_and_beta_train_and_statistics_stay() -> None:
    model = integer_model()
    corrected = attach_corrections(model).train()
    trainable = {name for name, p in corrected.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in trainable} == {"gamma", "beta"}
    assert len(trainable) == 2 * len(LAYERS)
    before = {k: v.clone() for k, v in corrected.state_dict().items() if k not in trainable}
    optimizer = torch.optim.Adam([p for p in corrected.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        corrected(images(step)).pow(2).mean().backward()
        optimizer.step()
    state = corrected.state_dict()
    assert all(torch.equal(state[k], v) for k, v in before.items())
    assert all(
        not torch.equal(c.gamma, torch.ones_like(c.gamma)) for _, c in corrections(corrected)
    )


@settings(max_examples=25, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), spread=st.sampled_from(SPREADS))
def test_a_folded_layer_equals_the_unfolded(spec: Quantization, seed: int, spread: float) -> None:
    """Also where a gamma is negative, which flips the codes of a layer without BatchNorm."""
    # Where no BatchNorm follows only a scale per channel can take up a gamma, and a negative one
    # only codes that have an opposite, which the lowest of a grid that is not narrow has not.
    narrow = spec.narrow_range or spread > 0.1
    spec = dataclasses.replace(spec, scale_without_batchnorm="per-channel", narrow_range=narrow)
    model = integer_model(spec, seed, shrink=0.7)
    corrected = attach_corrections(model).eval()
    perturb(corrected, seed, spread)
    folded = fold_corrections(corrected, model)
    layers = integer_layers(folded)
    assert tuple(layers) == LAYERS
    for (name, correction), layer in zip(corrections(corrected), layers.values(), strict=True):
        # Layer by layer: a last bit before a rounding is a whole code after it.
        x = torch.randn(2, correction.weight.shape[1] * correction.geometry[3], 8, 8)
        with torch.no_grad():
            unfolded = correction(x)
            block = folded.get_submodule(name.rpartition(".")[0]) if "." in name else None
            y = layer(x) if block is None else block.bn(layer(x))
        assert torch.allclose(y, unfolded, rtol=1e-4, atol=1e-4), name
        assert (layer.scale > 0).all(), name
        bits = spec.weight_bits(name)
        assert layer.levels_per_scale <= 2**bits
        assert int(layer.codes.abs().max()) <= 2 ** (bits - 1) - spec.narrow_range


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", SPREADS)
def test_a_folded_model_equals_the_unfolded(spread: float, seed: int) -> None:
    """Of float activations a last bit stays one to the end."""
    model = integer_model(seed=seed)
    corrected = attach_corrections(model).eval()
    perturb(corrected, seed, spread)
    unfolded = corrected(images(seed))
    folded = fold_corrections(corrected, model)
    assert torch.allclose(folded(images(seed)), unfolded, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.sampled_from(SPREADS))
def test_a_float_model_is_corrected_in_the_same_way(seed: int, spread: float) -> None:
    """From the identity, on the layers named alone, with an exact fold and the same tensors."""
    model = lived_in(float_model(seed))
    names = quantizable(model, W4A16)
    assert names == list(LAYERS)
    corrected = attach_corrections(model, names[1:]).eval()
    x = images(seed)
    assert torch.allclose(corrected(x), model(x), atol=1e-5)
    assert [name for name, _ in corrections(corrected)] == names[1:]
    perturb(corrected, seed, spread)
    folded = fold_corrections(corrected, model)
    assert torch.allclose(folded(x), corrected(x), rtol=1e-4, atol=1e-4)
    assert folded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("quantized", [True, False])
def test_fold_leaves_the_model_alone(quantized: bool) -> None:
    model = integer_model() if quantized else lived_in(float_model())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    corrected = attach_corrections(model, None if quantized else quantizable(model, W4A16))
    with torch.no_grad():
        for _, correction in corrections(corrected):
            correction.gamma.mul_(1.1)
    fold_corrections(corrected, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("has_bn", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
def test_outputs_and_gradients_equal_the_definition(
    has_bn: bool, has_bias: bool, quantized: bool
) -> None:
    """BN(gamma * h + beta), written out [G section 3.2] and differentiated by autograd."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=has_bias)
    model = nn.Sequential(conv)
    if quantized:
        insert_quantizers(model, W4A16)
    layer = to_integer(model.double())[0]
    bn = integer_model()[0].bn.double().requires_grad_(False) if has_bn else None
    corrected = CorrectedConv2d(layer, bn)
    with torch.no_grad():
        corrected.gamma.uniform_(-1.5, 1.5)
        corrected.beta.normal_()
    gamma, beta = (p.detach().clone().requires_grad_() for p in (corrected.gamma, corrected.beta))
    x, same = (torch.arange(384.0).reshape(2, 6, 4, 8).sin().double() for _ in range(2))

    h = gamma[:, None, None] * layer(x.requires_grad_()) + beta[:, None, None]
    expected = bn(h) if bn is not None else h
    found = corrected(same.requires_grad_())
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)

    assert torch.allclose(found, expected, rtol=1e-9)
    assert torch.allclose(corrected.gamma.grad, gamma.grad, rtol=1e-9)
    assert torch.allclose(corrected.beta.grad, beta.grad, rtol=1e-9)
    assert torch.allclose(same.grad, x.grad, rtol=1e-9)


def test_a_model_without_quantized_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no quantized layer"):
        attach_corrections(nn.Sequential(nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_lie_in_memory_as_inputs_do(kernel: int, layout: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(6, 5, kernel)).to(memory_format=layout)
    insert_quantizers(model, W4A16)
    corrected = attach_corrections(to_integer(model.eval()))
    x = torch.randn(2, 6, 8, 8).to(memory_format=layout)
    # A slice of channels, as a split of features hands it on.
    wide = torch.randn(2, 12, 8, 8).to(memory_format=layout)[:, :6]
    for tensor in (x, wide):
        tensor.requires_grad_()
        out = corrected(tensor)
        (grad,) = torch.autograd.grad(out, tensor, torch.ones_like(out))
        assert out.is_contiguous(memory_format=layout)
        assert grad.is_contiguous(memory_format=layout)


def test_the_code_without_an_opposite_is_not_flipped() -> None:
    """In int8 it would silently stay what it is."""
    model = integer_model(dataclasses.replace(W4A16, weight_bit_width=8, narrow_range=False))
    model[2].codes.clamp_(min=-127)[2, 0] = -128
    corrected = attach_corrections(model)
    with torch.no_grad():
        corrected[2].gamma[1] = -0.5
    fold_corrections(corrected, model)  # another channel's
    with torch.no_grad():
        corrected[2].gamma[2] = -0.5
    with pytest.raises(QatvalError, match=r"layer '2' cannot take its correction: .* -128 with"):
        fold_corrections(corrected, model)


def test_correction_learns_through_quantized_inputs() -> None:
    """Against the definition with the rounding passed straight through, by autograd in float64."""
    torch.manual_seed(0)
    model = integer_model(W4A4, shrink=0.5).double()
    layer, bn = model[1].conv, model[1].bn
    corrected = attach_corrections(model)[1].conv
    with torch.no_grad():
        corrected.gamma.uniform_(0.5, 1.5)
        corrected.beta.normal_()
    gamma, beta = (p.detach().clone().requires_grad_() for p in (corrected.gamma, corrected.beta))
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64).requires_grad_()
    same = x.detach().clone().requires_grad_()

    s = layer.input_scale
    ratio = x / s
    # Clamped at the outer edge of the last code, where rounding would leave it.
    codes = ratio.clamp(-8.5 + 1e-9, 7.5 - 1e-9)
    rounded = codes + (codes.round() - codes).detach()
    h = nn.functional.conv2d(rounded * s, layer.weight, stride=2, padding=1, groups=8)
    expected = bn(gamma[:, None, None] * h + beta[:, None, None])
    found = corrected(same)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)

    assert torch.allclose(found, expected)
    assert torch.allclose(corrected.gamma.grad, gamma.grad)
    assert torch.allclose(corrected.beta.grad, beta.grad)
    assert torch.allclose(same.grad, x.grad)
    assert int((same.grad == 0).sum()) > 0
    assert corrected.input_scale.requires_grad is False
