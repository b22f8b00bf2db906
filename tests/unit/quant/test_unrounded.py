"""A delivered layer in float: the latent weight, with all that was done after it was rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import (
    LAYERS,
    W4A16,
    float_model,
    images,
    layouts,
    quantized_model,
    shrinking,
    specs,
)
from torch import Tensor, nn

from qatval.core.quantization import Quantization
from qatval.quant.anchoring import Anchor, shift_statistics
from qatval.quant.batchnorm import statistics, tracking
from qatval.quant.correction import attach_corrections, corrections, fold_corrections
from qatval.quant.integer import integer_layers, to_integer
from qatval.quant.quantized_conv import codes_and_scale, quantize_nothing, quantized_layers
from qatval.quant.unrounded import answering_layers, float_layers, with_layers


def lived_in(model: nn.Module, seed: int) -> nn.Module:
    """Give BatchNorm statistics of its own to every channel."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


@torch.no_grad()
def corrected_alike(models: list[nn.Module], seed: int) -> list[nn.Module]:
    """Fold one and the same gamma and beta, some gammas negative, into several models."""
    folded = []
    for model in models:
        attached = attach_corrections(model, LAYERS).eval()
        generator = torch.Generator().manual_seed(seed)
        for _, correction in corrections(attached):
            correction.gamma.normal_(0.8, 0.6, generator=generator)
            correction.beta.normal_(0.0, 0.2, generator=generator)
        assert any((c.gamma < 0).any() for _, c in corrections(attached))
        folded.append(fold_corrections(attached, model))
    return folded


def all_in_float(delivered: nn.Module, latent: nn.Module) -> nn.Module:
    return with_layers(delivered, float_layers(delivered, latent))


@settings(max_examples=40, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), shrink=shrinking, layout=layouts)
def test_all_in_float_is_the_latent_model_without_quantizers(
    spec: Quantization, seed: int, shrink: float, layout: torch.memory_format
) -> None:
    latent = lived_in(quantized_model(spec, seed, shrink, layout), seed)
    unrounded = all_in_float(to_integer(latent), latent)
    assert not integer_layers(unrounded)
    quantize_nothing(latent)
    assert torch.equal(unrounded(images(seed)), latent(images(seed)))


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_in_float_leaves_the_others_rounded(name: str) -> None:
    latent = quantized_model(seed=3).eval()  # inputs in 4 bits too
    delivered = to_integer(latent)
    before = delivered(images())
    unrounded = with_layers(delivered, {name: float_layers(delivered, latent)[name]})
    assert tuple(integer_layers(unrounded)) == tuple(n for n in LAYERS if n != name)
    expected = deepcopy(latent)
    layer = dict(quantized_layers(expected))[name]
    layer.weight_quant.disable_quant = layer.input_quant.disable_quant = True
    assert torch.equal(unrounded(images()), expected(images()))
    assert torch.equal(delivered(images()), before)


def test_a_copy_costs_the_memory_of_the_layer_alone() -> None:
    latent = quantized_model(W4A16).eval()
    delivered = to_integer(latent)
    copy = with_layers(delivered, {LAYERS[0]: float_layers(delivered, latent)[LAYERS[0]]})
    kept = {t.data_ptr() for t in delivered.state_dict().values()}
    own = {name for name, t in copy.state_dict().items() if t.data_ptr() not in kept}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert {name for name in own if not name.endswith(statistics)} == {f"{LAYERS[0]}.weight"}
    for name in own - {f"{LAYERS[0]}.weight"}:  # may be changed without changing the model's
        assert torch.equal(copy.state_dict()[name], delivered.state_dict()[name])
    assert len(own) == 1 + 2 * len(statistics)


def test_statistics_that_fit_the_rounding_lead_back_to_those_before_it() -> None:
    """And moving those of the copy leaves the model's where they are."""
    coarse = dataclasses.replace(W4A16, weight_bit_width=2)
    latent, reference = (lived_in(m, 1) for m in (quantized_model(coarse), float_model()))

    def batches() -> list[Tensor]:
        return [images(1), images(2)]

    delivered = shift_statistics(to_integer(latent), reference, batches)
    before = {name: tensor.clone() for name, tensor in delivered.state_dict().items()}
    unrounded = all_in_float(delivered, latent)
    assert not torch.allclose(unrounded(images(1)), reference(images(1)), atol=1e-2)
    Anchor(delivered, batches).settle(unrounded)
    assert all(torch.equal(delivered.state_dict()[name], before[name]) for name in before)
    for name, layer in tracking(unrounded):
        for found, expected in zip(
            statistics(layer), statistics(dict(tracking(reference))[name]), strict=True
        ):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", ["per-channel", "per-tensor"])
def test_the_fold_of_a_correction_is_taken_along(scale: str, seed: int) -> None:
    """As if the float model had been corrected by the same gamma and beta."""
    spec = dataclasses.replace(W4A16, scale=scale, scale_without_batchnorm=scale)
    latent = lived_in(quantized_model(spec, seed), seed)
    in_float = lived_in(float_model(seed), seed)
    delivered, expected = corrected_alike([to_integer(latent), in_float], seed)
    found = all_in_float(delivered, latent)(images(seed))
    torch.testing.assert_close(found, expected(images(seed)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, delivered(images(seed)), atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_lie_on_their_codes_lose_nothing(seed: int) -> None:
    latent = lived_in(quantized_model(W4A16, seed), seed)
    with torch.no_grad():
        for _, layer in quantized_layers(latent):
            codes, step = codes_and_scale(layer)
            layer.weight.copy_(codes * step)
    (delivered,) = corrected_alike([to_integer(latent)], seed)
    found = all_in_float(delivered, latent)(images(seed))
    torch.testing.assert_close(found, delivered(images(seed)), rtol=1e-5, atol=1e-6)


def test_models_must_have_the_same_layers() -> None:
    latent = quantized_model(W4A16).eval()
    delivered = to_integer(latent)
    delivered.set_submodule("2", nn.Identity())
    with pytest.raises(ValueError, match=r"models differ in layers: \['2'\]"):
        float_layers(delivered, latent)


def test_a_head_to_learn_by_answers_nothing(quantized_yolo10n: Callable[[str], nn.Module]) -> None:
    model = to_integer(quantized_yolo10n("paper"))
    layers = answering_layers(model, torch.rand(1, 3, 64, 64))
    idle = [name for name in integer_layers(model) if name not in layers]
    assert len(idle) == 24
    assert all(name.startswith(("model.23.cv2.", "model.23.cv3.")) for name in idle)
    assert not any(layer.scale.requires_grad for layer in integer_layers(model).values())
