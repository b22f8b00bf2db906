"""Every precision: scales, bits of weights and activations, boundary layers; fused and frozen."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qatval.core.errors import QatvalError
from qatval.core.presets import quantization
from qatval.core.quantization import Quantization
from qatval.quant.averaging import WeightAverage
from qatval.quant.correction import attach_corrections, corrections, fold_corrections
from qatval.quant.fused import FusedQuantizer, fuse_quantization, quantized_once
from qatval.quant.integer import blank_integer_layer, integer_layers, to_integer
from qatval.quant.latent import LatentWeights, flatten
from qatval.quant.layers import (
    calibrate_activations,
    codes_and_scale,
    coverage,
    input_quantizer,
    input_scale,
    insert_quantizers,
    quantized_layers,
    scale_parameters,
)
from qatval.train.models import MEMORY_FORMAT

W4A4 = dataclasses.replace(quantization("w4a16"), activation_bit_width=4)

Perturb = Callable[[nn.Module, int, float], None]


class Block(nn.Module):
    def __init__(self, inp: int, out: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, 3, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(self.bn(self.conv(x)))


def float_model(seed: int = 0, layout: torch.memory_format = MEMORY_FORMAT) -> nn.Sequential:
    """First, depthwise and middle layers, and an output without BatchNorm."""
    torch.manual_seed(seed)
    model = nn.Sequential(Block(3, 8), Block(8, 8, groups=8), Block(8, 6), nn.Conv2d(6, 5, 1))
    return model.to(memory_format=layout)


def images(seed: int = 0, layout: torch.memory_format = MEMORY_FORMAT) -> Tensor:
    drawn = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=layout)


def quantized_model(
    spec: Quantization = W4A4,
    seed: int = 0,
    shrink: float = 1.0,
    layout: torch.memory_format = MEMORY_FORMAT,
) -> nn.Sequential:
    """A calibrated model; below 1, ``shrink`` pushes weights and inputs out of their grids."""
    model = float_model(seed, layout)
    insert_quantizers(model, spec)
    calibrate_activations(model, [images(seed), images(seed + 1)])
    with torch.no_grad():
        for scale in scale_parameters(model):
            scale.mul_(shrink)
    return model


specs = st.builds(
    Quantization,
    weight_bit_width=st.integers(2, 8),
    narrow_range=st.booleans(),
    scale=st.sampled_from(["per-tensor", "per-channel"]),
    scale_without_batchnorm=st.sampled_from(["per-tensor", "per-channel"]),
    exempt=st.just({}),
    scaling=st.sampled_from(["learned", "statistics"]),
    activation_bit_width=st.none() | st.integers(2, 8),
    boundary=st.just(("0.conv", "3")),
    boundary_bit_width=st.none() | st.integers(2, 8),
)
shrinking = st.sampled_from([-1.0, 0.3, 1.0, 2.0])
layouts = st.sampled_from([torch.contiguous_format, torch.channels_last])


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.linspace(-1.0, 1.0, out.numel()).view_as(out)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return out.detach(), {**found, "input": x.grad}


# -- how weights lie in memory ----------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(spec=specs, layout=layouts)
def test_codes_are_flattened_without_a_copy_and_back(
    spec: Quantization, layout: torch.memory_format
) -> None:
    model = quantized_model(spec, layout=layout)
    weights = LatentWeights(model)
    flat = weights.flat_codes()
    back = weights.unflatten(flat)
    for codes, (_, layer) in zip(back, quantized_layers(model), strict=True):
        expected, _ = codes_and_scale(layer)
        assert torch.equal(codes, expected)
        assert codes.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        if layout == torch.channels_last:
            assert flatten(layer.weight).data_ptr() == layer.weight.data_ptr()


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


# -- against Brevitas -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), shrink=shrinking, layout=layouts)
def test_fused_training_equals_brevitas(
    spec: Quantization, seed: int, shrink: float, layout: torch.memory_format
) -> None:
    """Output, every gradient and the kept codes, to the last bit, however tensors lie in memory."""
    brevitas = quantized_model(spec, seed, shrink, layout).train()
    fused = copy.deepcopy(brevitas)
    quantizer = fuse_quantization(fused, capture=True)
    x = images(seed, layout)
    out, wanted = gradients(brevitas, x)
    same, found = gradients(fused, x)
    assert torch.equal(out, same)
    assert found.keys() == wanted.keys() >= {"input", "0.conv.weight", "3.bias"}
    for name, grad in wanted.items():
        assert torch.equal(found[name], grad), name
    codes = [flatten(codes_and_scale(layer)[0]) for _, layer in quantized_layers(brevitas)]
    assert torch.equal(quantizer.codes, torch.cat(codes))


@settings(max_examples=40, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), shrink=shrinking, layout=layouts)
def test_weights_joined_by_grid_equal_brevitas(
    spec: Quantization, seed: int, shrink: float, layout: torch.memory_format
) -> None:
    """The form for GPUs: weights to the last bit, sums of scales in another order."""
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
    for name, grad in wanted.items():
        assert torch.allclose(model.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-4), name
    assert torch.equal(joined.codes, LatentWeights(model).flat_codes())


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


@settings(max_examples=25, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000))
def test_latent_weights_are_on_brevitas_grid(spec: Quantization, seed: int) -> None:
    model = quantized_model(spec, seed, shrink=0.6)
    latent = LatentWeights(model)
    for layer, codes, scale, grid in zip(
        latent.layers, latent.codes(), latent.scales(), latent.grids, strict=True
    ):
        wanted, step = codes_and_scale(layer)
        assert torch.equal(codes, wanted.float())
        assert torch.equal(scale, step)
        assert grid.low <= codes.min() <= codes.max() <= grid.high


# -- against the published formulas -----------------------------------------------------------


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


# -- calibration ------------------------------------------------------------------------------


def test_scales_of_activations_start_as_in_lsq() -> None:
    """Against the mean magnitude of what each layer of the float model reads."""
    plain = float_model().eval()
    seen: dict[str, list[Tensor]] = {}
    for name, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0].double())
            )
    batches = [images(0), images(1)[:1]]
    with torch.no_grad():
        for batch in batches:
            plain(batch)
    spec = dataclasses.replace(W4A4, boundary=("0.conv",), boundary_bit_width=8)
    model = float_model()
    insert_quantizers(model, spec)
    before = {n: p.clone() for n, p in model.named_parameters() if "input_quant" not in n}
    calibrate_activations(model, iter(batches))
    for name, layer in quantized_layers(model):
        inputs = torch.cat([x.flatten() for x in seen[name]])
        largest = 127 if name == "0.conv" else 7
        wanted = float(2.0 * inputs.abs().mean() / math.sqrt(largest))
        assert float(input_scale(layer)) == pytest.approx(wanted, rel=1e-6)
    assert all(torch.equal(model.get_parameter(n), p) for n, p in before.items())
    assert all(module.training for module in model.modules())
    assert torch.isfinite(model(images())).all()


def test_weights_do_not_change_where_activations_start() -> None:
    models = [quantized_model(dataclasses.replace(W4A4, weight_bit_width=bits)) for bits in (2, 8)]
    one, other = ([input_scale(layer) for _, layer in quantized_layers(m)] for m in models)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_model_that_was_not_calibrated_answers_nothing() -> None:
    model = float_model()
    insert_quantizers(model, W4A4)
    assert torch.isnan(model.eval()(images())).all()
    with pytest.raises(ValueError, match=r"'0\.conv' has weights or scales that are not finite"):
        to_integer(model)


@pytest.mark.parametrize("batches", [[], [torch.zeros(1, 3, 8, 8)]])
def test_calibration_needs_images(batches: Sequence[Tensor]) -> None:
    model = float_model()
    insert_quantizers(model, W4A4)
    with pytest.raises(QatvalError, match=r"cannot calibrate the input of layer '0\.conv'"):
        calibrate_activations(model, batches)


def test_calibration_leaves_float_activations_alone() -> None:
    model = float_model()
    insert_quantizers(model, quantization("w4a16"))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    calibrate_activations(model, [])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


# -- what is there ----------------------------------------------------------------------------


def test_boundary_layers_have_their_own_bits() -> None:
    spec = dataclasses.replace(
        W4A4,
        weight_bit_width=3,
        activation_bit_width=5,
        boundary=("0.*", "3"),
        boundary_bit_width=8,
    )
    model = quantized_model(spec)
    layers = coverage(model, spec)
    assert [(layer.bits, layer.activation_bits) for layer in layers] == [
        (8, 8),
        (3, 5),
        (3, 5),
        (8, 8),
    ]
    for name, layer in quantized_layers(model):
        codes, _ = codes_and_scale(layer)
        assert int(codes.abs().max()) == (127 if name in ("0.conv", "3") else 3)


def test_activations_are_quantized_only_where_they_are_asked_for() -> None:
    spec = dataclasses.replace(quantization("w4a16"), boundary=("0.*",), boundary_bit_width=8)
    model = float_model()
    insert_quantizers(model, spec)
    assert [layer.bits for layer in coverage(model, spec)] == [8, 4, 4, 4]
    assert {layer.activation_bits for layer in coverage(model, spec)} == {None}
    assert all(input_quantizer(layer) is None for _, layer in quantized_layers(model))


def test_exempt_layers_read_their_input_in_float() -> None:
    spec = dataclasses.replace(W4A4, exempt={"2.conv": "a reason"})
    model = float_model()
    insert_quantizers(model, spec)
    (exempt,) = [layer for layer in coverage(model, spec) if layer.reason]
    assert (exempt.name, exempt.bits, exempt.activation_bits) == ("2.conv", None, None)
    assert type(model[2].conv) is nn.Conv2d


def test_inputs_take_no_more_values_than_their_bits_allow() -> None:
    model = quantized_model(dataclasses.replace(W4A4, activation_bit_width=3), shrink=0.2).eval()
    for name, layer in integer_layers(to_integer(model)).items():
        quantized = layer.quantized(torch.randn(20_000))
        assert quantized.unique().numel() == 8, name
        assert float(quantized.min()) == pytest.approx(-4 * float(layer.input_scale)), name


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (W4A4, 8),
        (dataclasses.replace(W4A4, activation_bit_width=None), 4),
        (dataclasses.replace(W4A4, scaling="statistics"), 4),
        (dataclasses.replace(W4A4, scaling="statistics", activation_bit_width=None), 0),
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


def test_a_layer_of_zeros_has_codes() -> None:
    model = quantized_model(dataclasses.replace(W4A4, scaling="statistics"))
    with torch.no_grad():
        model[1].conv.weight.zero_()
    fused = FusedQuantizer(model, flat=False)
    assert torch.equal(fused.quantize()[1], torch.zeros_like(model[1].conv.weight))


# -- what training and delivery do with them --------------------------------------------------


def trained(model: nn.Module, steps: int = 3) -> WeightAverage:
    """Train a little, so that scales move; return the average."""
    fuse_quantization(model.train())
    average = WeightAverage(model, decay=0.9, tau=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        model(images(step)).pow(2).mean().backward()
        optimizer.step()
        average.update(model)
    return average


def test_the_average_follows_the_scales_of_activations() -> None:
    model = quantized_model()
    start = {n: v.clone().double() for n, v in model.state_dict().items() if "input_quant" in n}
    average = WeightAverage(model, decay=0.5, tau=1e-9)
    for _ in range(2):
        with torch.no_grad():
            for scale in scale_parameters(model):
                scale.mul_(2.0)
        average.update(model)
    state = average.ema.state_dict()
    assert len(start) == 4
    for name, value in start.items():
        assert float(state[name]) == pytest.approx(float(value) * (0.25 + 0.5 + 2.0))


def test_training_moves_the_scales_of_activations() -> None:
    model = quantized_model()
    before = [input_scale(layer) for _, layer in quantized_layers(model)]
    average = trained(model)
    after = [input_scale(layer) for _, layer in quantized_layers(model)]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    ema = [input_scale(layer) for _, layer in quantized_layers(average.ema)]
    for a, b, c in zip(before, after, ema, strict=True):
        assert min(a, b) < c < max(a, b)


@pytest.mark.parametrize("scaling", ["learned", "statistics"])
def test_state_dict_reloads_into_a_fresh_model(scaling: Any) -> None:
    spec = dataclasses.replace(W4A4, scaling=scaling, boundary=("0.*",), boundary_bit_width=8)
    model = quantized_model(spec)
    trained(model)
    other = float_model(seed=5)
    insert_quantizers(other, spec)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(images()), model.eval()(images()))


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
    model = quantized_model(dataclasses.replace(W4A4, activation_bit_width=None)).eval()
    assert not [key for key in to_integer(model).state_dict() if "input" in key]


def test_mixed_precision_quantizes_inputs_in_float32() -> None:
    """In bfloat16 the 127 positive codes of 8 bits would be less than half as many."""
    spec = dataclasses.replace(W4A4, activation_bit_width=8)
    brevitas = quantized_model(spec, shrink=0.5).train()
    fused = copy.deepcopy(brevitas)
    fuse_quantization(fused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, wanted = gradients(brevitas, images())
        same, found = gradients(fused, images())
        quantized = brevitas[1].conv.input_quant(torch.rand(1, 8, 64, 64).bfloat16() * 9)
    assert torch.equal(out, same)
    assert all(torch.equal(found[name], grad) for name, grad in wanted.items())
    assert quantized.value.dtype == torch.float32
    codes = quantized.value / quantized.scale
    assert torch.allclose(codes, codes.round(), atol=1e-3)


# -- quantization correction ------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), spread=st.sampled_from([0.01, 0.3]))
def test_folded_correction_equals_unfolded(
    perturb: Perturb, spec: Quantization, seed: int, spread: float
) -> None:
    # Only a scale per channel can take up a gamma where no BatchNorm follows.
    spec = dataclasses.replace(spec, scale_without_batchnorm="per-channel")
    model = to_integer(quantized_model(spec, seed, shrink=0.7).eval())
    corrected = attach_corrections(model).eval()
    perturb(corrected, seed, spread)
    folded = fold_corrections(corrected, model)
    for (name, correction), layer in zip(
        corrections(corrected), integer_layers(folded).values(), strict=True
    ):
        # Layer by layer: a last bit before a rounding is a whole code after it.
        x = torch.randn(2, correction.weight.shape[1] * correction.geometry[3], 8, 8)
        with torch.no_grad():
            unfolded = correction(x)
            block = folded.get_submodule(name.rpartition(".")[0]) if "." in name else None
            y = layer(x) if block is None else block.bn(layer(x))
        assert torch.allclose(y, unfolded, rtol=1e-4, atol=1e-4), name


def test_correction_learns_through_quantized_inputs() -> None:
    """Against the definition with the rounding passed straight through, by autograd in float64."""
    torch.manual_seed(0)
    model = to_integer(quantized_model(shrink=0.5).eval()).double()
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
    h = nn.functional.conv2d(rounded * s, layer.weight, padding=1, groups=8)
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
