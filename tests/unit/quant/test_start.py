"""The start: where scales begin, and statistics moved by what quantization changes alone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import W4A16, Block
from torch import Tensor, nn

from qatval.core.errors import UsageError
from qatval.core.quantization import Start, StartScale
from qatval.quant.anchoring import Anchor, shift, shift_statistics
from qatval.quant.latent import LatentWeights
from qatval.quant.layers import insert_quantizers
from qatval.quant.start import initialise_scales, start


def a_model(seed: int = 0) -> nn.Sequential:
    """Two blocks and an output without BatchNorm, with statistics of their own."""
    torch.manual_seed(seed)
    model = nn.Sequential(Block(3, 6), Block(6, 5), nn.Conv2d(5, 4, 1)).eval()
    with torch.no_grad():
        for block in model[:2]:
            assert isinstance(block, Block)
            block.bn.weight.uniform_(0.5, 1.5)
            block.bn.bias.normal_()
            block.bn.get_buffer("running_mean").normal_()
            block.bn.get_buffer("running_var").uniform_(0.5, 2.0)
    return model


def batches(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 8, 8, generator=generator) * 2 + 1 for n in (4, 4, 2)]


def quantized(model: nn.Module, bits: int = 4) -> nn.Module:
    found = copy.deepcopy(model)
    insert_quantizers(found, dataclasses.replace(W4A16, weight_bit_width=bits))
    return found.eval()


def test_of_the_model_itself_shifting_changes_nothing() -> None:
    model = a_model()
    shifted = shift_statistics(model, model, batches)
    assert shifted is not model
    for name, value in model.state_dict().items():
        assert torch.allclose(shifted.state_dict()[name], value, atol=1e-6), name


def test_a_settled_model_is_settled() -> None:
    """Of what an anchor sets, nothing depends on what was there before."""
    reference, model = a_model(), quantized(a_model(), bits=3).train()
    anchor = Anchor(reference, batches)
    modes = [module.training for module in model.modules()]
    anchor.settle(model)
    once = copy.deepcopy(model.state_dict())
    for layer in (model.get_submodule("0.bn"), model.get_submodule("1.bn")):
        layer.get_buffer("running_mean").add_(3.0)
        layer.get_buffer("running_var").mul_(2.0)
    anchor.settle(model)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, once[name]), name
    shifted = shift_statistics(quantized(a_model(), bits=3), reference, batches)
    for layer in ("0.bn", "1.bn"):
        for kind in ("running_mean", "running_var"):
            assert torch.equal(once[f"{layer}.{kind}"], shifted.state_dict()[f"{layer}.{kind}"])


def test_shifting_leaves_modes_and_the_reference_alone() -> None:
    reference, model = a_model().train(), quantized(a_model(), bits=3)
    model[0].train()
    modes = [[module.training for module in m.modules()] for m in (reference, model)]
    before = copy.deepcopy(reference.state_dict())
    shift(model, reference, batches)
    assert [[module.training for module in m.modules()] for m in (reference, model)] == modes
    for name, value in reference.state_dict().items():
        assert torch.equal(value, before[name]), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
def test_the_shift_is_what_a_hook_measures(seed: int, bits: int) -> None:
    """Oracle: means and variances of the first convolution's outputs, taken by hand."""
    model = a_model(seed)
    ours = quantized(model, bits)
    shifted = shift_statistics(ours, model, lambda: batches(seed))

    def moments(m: nn.Module) -> tuple[Tensor, Tensor]:
        outputs = [m.get_submodule("0.conv")(x).transpose(0, 1).flatten(1) for x in batches(seed)]
        return (
            torch.stack([y.mean(1) for y in outputs]).mean(0),
            torch.stack([y.var(1) for y in outputs]).mean(0),
        )

    with torch.no_grad():
        (m_q, v_q), (m_f, v_f) = moments(ours), moments(model)
        before, after = model.get_submodule("0.bn"), shifted.get_submodule("0.bn")
        assert isinstance(before, nn.BatchNorm2d)
        mean = before.get_buffer("running_mean") + m_q - m_f
        var = before.get_buffer("running_var") * (v_q + before.eps) / (v_f + before.eps)
    assert torch.allclose(after.get_buffer("running_mean"), mean, atol=1e-4)
    assert torch.allclose(after.get_buffer("running_var"), var, rtol=1e-4)


def test_outputs_without_batchnorm_keep_the_reference_s_mean() -> None:
    model = a_model(1)
    shifted = shift_statistics(quantized(model, bits=2), model, batches)

    def means(m: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([m(x) for x in batches()]).mean((0, 2, 3))

    naive = (means(quantized(model, bits=2)) - means(model)).abs()
    assert torch.allclose(means(shifted), means(model), atol=1e-5)
    assert (naive > 1e-3).any()


@pytest.mark.parametrize("scale", ["per-tensor", "per-channel"])
def test_least_squares_is_no_worse_than_the_others(scale: str) -> None:
    errors = {}
    for how in ("max", "mse", "lsq"):
        model = a_model(2)
        insert_quantizers(model, dataclasses.replace(W4A16, scale=scale))
        initialise_scales(model, how)
        weights = LatentWeights(model)
        errors[how] = [
            float((codes * s - w.detach()).square().sum())
            for codes, s, w in zip(
                weights.codes(), weights.scales(), weights.weights(), strict=True
            )
        ]
    for other in ("max", "lsq"):
        assert all(a <= b + 1e-9 for a, b in zip(errors["mse"], errors[other], strict=True)), other
    assert errors["mse"] < errors["max"]


def test_lsq_starts_where_its_paper_says() -> None:
    model = a_model(3)
    insert_quantizers(model, W4A16)
    initialise_scales(model, "lsq")
    weights = LatentWeights(model)
    for weight, scale in zip(weights.weights(), weights.scales(), strict=True):
        expected = 2 * weight.abs().flatten(1).mean(1) / 7**0.5
        assert torch.allclose(scale.flatten(), expected, rtol=1e-6)


@pytest.mark.parametrize("statistics", ["kept", "reestimated", "shifted"])
def test_the_model_that_is_started_stays_as_it_is(statistics: str) -> None:
    reference = a_model()
    model = quantized(reference)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    how = Start("mse", statistics)
    started = start(model, reference, how, batches)
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())
    same = torch.equal(
        started.get_submodule("0.bn").get_buffer("running_mean"),
        model.get_submodule("0.bn").get_buffer("running_mean"),
    )
    assert same == (statistics == "kept")


def test_a_dead_channel_stays_finite() -> None:
    reference = a_model()
    with torch.no_grad():
        reference.get_submodule("0.conv").get_parameter("weight")[0] = 0.0
    for how in ("max", "mse", "lsq"):
        scale: StartScale = how
        started = start(quantized(reference), reference, Start(scale, "shifted"), batches)
        assert all(t.isfinite().all() for t in started.state_dict().values())
        assert started(batches()[0]).isfinite().all()


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="statistics must be one of kept, reestimated, shifted"):
        Start("max", "blended")
    with pytest.raises(UsageError, match="cannot start at 'mse'"):
        dataclasses.replace(W4A16, scaling="statistics", start=Start("mse"))
