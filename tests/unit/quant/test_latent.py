"""Latent weights: on Brevitas' grid, and flat without a copy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quant.conftest import LAYERS, layouts, quantized_model, specs

from qatval.core.quantization import Quantization
from qatval.quant.latent import LatentWeights, flatten
from qatval.quant.quantized_conv import codes_and_scale


@settings(max_examples=25, deadline=None)
@given(spec=specs, seed=st.integers(0, 1000), layout=layouts)
def test_latent_weights_are_on_brevitas_grid(
    spec: Quantization, seed: int, layout: torch.memory_format
) -> None:
    model = quantized_model(spec, seed, shrink=0.6, layout=layout)
    latent = LatentWeights(model)
    again = latent.unflatten(latent.flat_codes())
    for layer, codes, same, scale, grid in zip(
        latent.layers, latent.codes(), again, latent.scales(), latent.grids, strict=True
    ):
        wanted, step = codes_and_scale(layer)
        assert torch.equal(codes, wanted.float())
        assert torch.equal(same, wanted)
        assert torch.equal(scale, step)
        assert grid.low <= codes.min() <= codes.max() <= grid.high


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_codes_are_unflattened_without_a_copy(layout: torch.memory_format) -> None:
    model = quantized_model(layout=layout)
    weights = LatentWeights(model)
    flat = weights.flat_codes()
    for codes in weights.unflatten(flat):
        assert codes.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_weights_are_flattened_without_a_copy_where_channels_lie_last() -> None:
    layers = LatentWeights(quantized_model(layout=torch.channels_last)).layers
    assert len(layers) == len(LAYERS)
    for layer in layers:
        assert flatten(layer.weight).data_ptr() == layer.weight.data_ptr()
