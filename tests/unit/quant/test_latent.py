"""Latent weights: on Brevitas' grid, and flat without a copy."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import layouts, quantized_model, specs

from qatval.core.quantization import Quantization
from qatval.quant.latent import LatentWeights, flatten
from qatval.quant.quantized_conv import codes_and_scale, quantized_layers


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
