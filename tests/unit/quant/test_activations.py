"""Quantized inputs: where their scales start, and which layers have them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from tests.unit.quant.conftest import (
    W4A4,
    W4A16,
    float_model,
    gradients,
    images,
    quantized_model,
)
from torch import Tensor, nn

from qatval.core.errors import QatvalError
from qatval.quant.fused import fuse_quantization
from qatval.quant.integer import to_integer
from qatval.quant.layers import calibrate_activations, coverage, insert_quantizers
from qatval.quant.quantized_conv import input_grid, input_scale, quantized_layers


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
    insert_quantizers(model, W4A16)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    calibrate_activations(model, [])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_activations_are_quantized_only_where_they_are_asked_for() -> None:
    spec = dataclasses.replace(W4A16, boundary=("0.*",), boundary_bit_width=8)
    model = float_model()
    insert_quantizers(model, spec)
    assert [layer.bits for layer in coverage(model, spec)] == [8, 4, 4]
    assert {layer.activation_bits for layer in coverage(model, spec)} == {None}
    assert all(input_grid(layer) is None for _, layer in quantized_layers(model))


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
