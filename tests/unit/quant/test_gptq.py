"""GPTQ: less error of the outputs than rounding to nearest, whatever the layout of the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qatval.core.presets import quantization
from qatval.quant.gptq import GPTQ, _Gptq, at_most, round_by_gptq
from qatval.quant.integer import integer_layers, to_integer
from qatval.quant.layers import insert_quantizers
from qatval.quant.quantized_conv import quantized_layers

SPEC = quantization("w4a16")


def images(seed: int, channels: int = 4) -> list[Tensor]:
    """Return correlated inputs, as activations are: neighbouring channels and pixels alike."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, 8, 1, 5, 5, generator=generator)
    mixed = base + 0.4 * torch.randn(3, 8, channels, 5, 5, generator=generator)
    return list(nn.functional.interpolate(mixed.flatten(0, 1), size=10).split(8))


def quantized(model: nn.Module) -> nn.Module:
    insert_quantizers(model, SPEC)
    return model.eval()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), stride=st.integers(1, 2), channels_last=st.booleans())
def test_outputs_are_nearer_than_those_of_the_nearest_codes(
    seed: int, stride: int, channels_last: bool
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=stride, padding=1))
    if channels_last:
        model.to(memory_format=torch.channels_last)
    batches = images(seed)
    with torch.no_grad():
        wanted = [model(batch) for batch in batches]
    nearest = quantized(copy.deepcopy(model))
    rounded = round_by_gptq(nearest, batches)

    def error(m: nn.Module) -> float:
        with torch.no_grad():
            pairs = zip(batches, wanted, strict=True)
            return sum(float((m(x) - y).square().sum()) for x, y in pairs)

    assert error(rounded) < 0.9 * error(nearest)
    ours, theirs = integer_layers(to_integer(rounded)), integer_layers(to_integer(nearest))
    for name, layer in ours.items():
        assert torch.equal(layer.scale, theirs[name].scale)
        assert not torch.equal(layer.codes, theirs[name].codes)
        assert int(layer.codes.abs().max()) <= 7


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_patches_are_those_that_brevitas_takes(groups: int, kernel: int, stride: int) -> None:
    """Oracle: Brevitas' own `process_input`."""
    conv = nn.Conv2d(4, 8, kernel, stride=stride, padding=kernel // 2, groups=groups)
    model = quantized(nn.Sequential(conv))
    ((name, layer),) = quantized_layers(model)
    found, expected = (
        kind(layer, name, act_order=False, len_parallel_layers=1, create_weight_orig=False,
             num_blocks=1).process_input((images(0)[0],))
        for kind in (_Gptq, GPTQ)
    )  # fmt: skip
    # The order of the positions differs, which a sum over them does not see.
    assert found.shape == expected.shape
    gram = found.bmm(found.transpose(2, 1))
    assert torch.allclose(gram, expected.bmm(expected.transpose(2, 1)), rtol=1e-4, atol=1e-3)


def test_the_model_stays_as_it_is_and_progress_is_told() -> None:
    torch.manual_seed(0)
    model = quantized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.SiLU(), nn.Conv2d(6, 6, 3, groups=6)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done: list[int] = []
    rounded = round_by_gptq(model, images(1), done.append)
    assert done == [1, 2]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert rounded.state_dict().keys() == before.keys()


def test_whole_batches_until_there_are_enough() -> None:
    batches = [torch.zeros(4, 1)] * 5
    assert [len(list(at_most(batches, n))) for n in (1, 4, 5, 16, 100)] == [1, 1, 2, 4, 5]
