"""Quantization correction: identity at the start, only gamma and beta train, exact folds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qatval.core.presets import quantization
from qatval.quant.correction import (
    CorrectedConv2d,
    attach_corrections,
    corrections,
    fold_corrections,
)
from qatval.quant.integer import integer_layers, to_integer
from qatval.quant.layers import insert_quantizers, quantizable

Perturb = Callable[[nn.Module, int, float], None]


class Block(nn.Module):
    def __init__(self, inp: int, out: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, 3, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(self.bn(self.conv(x)))


def float_model(seed: int = 0) -> nn.Module:
    """A model with lived-in BatchNorms and an output without one."""
    torch.manual_seed(seed)
    model = nn.Sequential(Block(3, 8), Block(8, 8, groups=8), nn.Conv2d(8, 5, 1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
    return model.eval()


def integer_model(seed: int = 0) -> nn.Module:
    """The same, frozen."""
    model = float_model(seed)
    insert_quantizers(model, quantization("w4a16"))
    return to_integer(model)


def images(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


def test_starts_at_the_identity() -> None:
    model = integer_model()
    corrected = attach_corrections(model)
    assert torch.allclose(corrected(images()), model(images()), atol=1e-6)
    assert len(list(corrections(corrected))) == len(integer_layers(model)) == 3


def test_only_gamma_and_beta_train_and_statistics_stay() -> None:
    model = integer_model()
    corrected = attach_corrections(model).train()
    trainable = {name for name, p in corrected.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in trainable} == {"gamma", "beta"}
    assert len(trainable) == 6
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
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.01, 0.3, 1.5]))
def test_folded_equals_unfolded(perturb: Perturb, seed: int, spread: float) -> None:
    """Also where a gamma is negative, which flips the codes of a layer without BatchNorm."""
    model = integer_model(seed)
    corrected = attach_corrections(model).eval()
    perturb(corrected, seed, spread)
    unfolded = corrected(images(seed))
    folded = fold_corrections(corrected, model)
    assert torch.allclose(folded(images(seed)), unfolded, rtol=1e-4, atol=1e-4)
    for name, layer in integer_layers(folded).items():
        assert (layer.scale > 0).all(), name
        assert layer.levels_per_scale <= 16
        assert int(layer.codes.abs().max()) <= 7


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.01, 0.3, 1.5]))
def test_a_float_model_is_corrected_in_the_same_way(
    perturb: Perturb, seed: int, spread: float
) -> None:
    """From the identity, on the layers named alone, with an exact fold and the same tensors."""
    model = float_model(seed)
    names = quantizable(model, quantization("w4a16"))
    assert names == ["0.conv", "1.conv", "2"]
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
    model = integer_model() if quantized else float_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    corrected = attach_corrections(model, None if quantized else ["0.conv", "1.conv", "2"])
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
        insert_quantizers(model, quantization("w4a16"))
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
    insert_quantizers(model, quantization("w4a16"))
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
