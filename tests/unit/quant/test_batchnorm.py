"""Fresh BatchNorm statistics against sums by hand; drift against torch's own divergence."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from qatval.core.presets import quantization
from qatval.quant.batchnorm import drift, reestimate
from qatval.quant.layers import insert_quantizers


def a_model(*, quantized: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5, eps=1e-3, momentum=0.03),
    )  # fmt: skip
    if quantized:
        insert_quantizers(model, quantization("w4a16"))
    with torch.no_grad():
        for layer in (model[1], model[5]):
            layer.get_parameter("weight").uniform_(0.5, 1.5)
            layer.get_parameter("bias").normal_()
            layer.get_buffer("running_mean").normal_()
            layer.get_buffer("running_var").uniform_(0.5, 2.0)
            layer.get_buffer("num_batches_tracked").fill_(7)
    return model


def some_batches(seed: int, sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 6, 6, generator=generator) * 2 + 1 for n in sizes]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def by_hand(model: nn.Sequential, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance that each BatchNorm should have, in float64, from the definition."""
    model = copy.deepcopy(model).double()
    found: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for batch in batches:
        x = batch.double()
        for position, (conv, bn) in enumerate(((model[0], model[1]), (model[4], model[5]))):
            x = nn.functional.conv2d(x, conv.get_parameter("weight"), conv.get_parameter("bias"))
            channels = x.transpose(0, 1).flatten(1)
            mean, count = channels.mean(1), channels.shape[1]
            squares = (channels - mean[:, None]).square().sum(1)
            found[position].append((mean, squares / (count - 1)))
            shape = (1, -1, 1, 1)
            assert isinstance(bn, nn.BatchNorm2d)
            normal = (x - mean.view(shape)) / (squares / count + bn.eps).view(shape).sqrt()
            x = normal * bn.get_parameter("weight").view(shape)
            x = (x + bn.get_parameter("bias").view(shape)).relu()
    return [
        (torch.stack([m for m, _ in layer]).mean(0), torch.stack([v for _, v in layer]).mean(0))
        for layer in found
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_statistics_are_the_means_of_the_batches_own(seed: int, sizes: list[int]) -> None:
    """Of unequal batches too, and with nothing left of the statistics before."""
    model, batches = a_model(seed=seed), some_batches(seed, sizes)
    fresh = reestimate(model, batches)
    for layer, (mean, variance) in zip(("1", "5"), by_hand(model, batches), strict=True):
        found = fresh.get_submodule(layer)
        assert torch.allclose(found.get_buffer("running_mean").double(), mean, atol=1e-5)
        assert torch.allclose(found.get_buffer("running_var").double(), variance, rtol=1e-4)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_else_changes(quantized: bool, training: bool) -> None:
    model = a_model(quantized=quantized).train(training)
    model[1].eval()  # modes of single modules count too
    before, modes = state_of(model), [m.training for m in model.modules()]
    batches = some_batches(0, [4, 4])
    random_state = torch.get_rng_state()
    fresh = reestimate(model, batches)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in fresh.modules()] == modes
    assert [getattr(m, "momentum", None) for m in fresh.modules()] == [
        getattr(m, "momentum", None) for m in model.modules()
    ]
    after, state = state_of(model), state_of(fresh)
    statistics = {n for n in before if n.rpartition(".")[2].startswith("running")}
    assert state.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert torch.equal(state[name], value) == (name not in statistics), name
    assert all(parameter.grad is None for parameter in fresh.parameters())
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_a_layer_that_no_batch_reaches_keeps_its_statistics() -> None:
    model = a_model()
    model.register_module("aside", nn.Identity())
    model.get_submodule("aside").register_module("bn", nn.BatchNorm2d(3))
    aside = model.get_submodule("aside.bn")
    aside.get_buffer("running_mean").fill_(3.0)
    aside.get_buffer("num_batches_tracked").fill_(5)
    fresh = reestimate(model, some_batches(0, [4]))
    assert torch.equal(fresh.get_buffer("aside.bn.running_mean"), torch.full((3,), 3.0))
    assert int(fresh.get_buffer("aside.bn.num_batches_tracked")) == 5
    assert [(d.name, d.kl_max == 0.0) for d in drift(model, fresh, 4).layers] == [
        ("1", False),
        ("5", False),
        ("aside.bn", True),
    ]


def test_without_batches_there_are_no_statistics() -> None:
    with pytest.raises(ValueError, match="no batch"):
        reestimate(a_model(), [])


def test_every_batchnorm_of_a_quantized_yolo10n_is_reached(
    quantized_detector: Callable[[str, str], nn.Module],
) -> None:
    """Both heads run in evaluation mode, and decoding leaves the statistics alone."""
    model = quantized_detector("yolov10n.yaml", "w4a16").train()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    fresh = reestimate(model, [images])
    model.eval()
    layers = drift(model, fresh, 2).layers
    assert len(layers) == 95
    assert all(layer.kl_mean > 0 for layer in layers)


# -- drift ----------------------------------------------------------------------------------------

means = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)
variances = st.lists(st.just(0.0) | st.floats(2**-20, 1e4, width=32), min_size=3, max_size=3)


def with_statistics(mean: list[float], variance: list[float]) -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3))
    model[0].get_buffer("running_mean").copy_(torch.tensor(mean))
    model[0].get_buffer("running_var").copy_(torch.tensor(variance))
    return model


@settings(max_examples=100, deadline=None)
@given(means, variances, means, variances)
def test_drift_is_the_divergence_of_the_fresh_from_the_running_statistics(
    m1: list[float], v1: list[float], m2: list[float], v2: list[float]
) -> None:
    def normal(mean: list[float], variance: list[float]) -> Normal:
        spread = (torch.tensor(variance, dtype=torch.float64) + 1e-3).sqrt()
        return Normal(torch.tensor(mean, dtype=torch.float64), spread)

    drifted = drift(with_statistics(m1, v1), with_statistics(m2, v2), 8)
    (found,) = drifted.layers
    expected = kl_divergence(normal(m2, v2), normal(m1, v1))
    assert found.name == drifted.worst_layer == "0"
    assert (drifted.kl_mean, drifted.kl_max) == (found.kl_mean, found.kl_max)
    assert drifted.images == 8
    assert found.kl_mean == pytest.approx(float(expected.mean()), rel=1e-6, abs=1e-9)
    assert found.kl_max == pytest.approx(float(expected.max()), rel=1e-6, abs=1e-9)
    assert found.kl_mean >= 0.0


def test_a_dead_channel_has_not_drifted() -> None:
    dead = with_statistics([0.0, 1.0, -3.0], [0.0, 0.0, 0.0])
    (found,) = drift(dead, copy.deepcopy(dead), 1).layers
    assert (found.kl_mean, found.kl_max) == (0.0, 0.0)


def test_drift_of_one_standard_deviation() -> None:
    """A mean that is off by one deviation costs half a nat."""
    running, fresh = ([1.0, 0.0, 0.0], [0.999] * 3), ([0.0] * 3, [0.999] * 3)
    (found,) = drift(with_statistics(*running), with_statistics(*fresh), 1).layers
    assert found.kl_max == pytest.approx(0.5)
    assert found.kl_mean == pytest.approx(0.5 / 3)


def test_models_with_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="5"):
        drift(a_model(), nn.Sequential(nn.Identity(), nn.BatchNorm2d(4)), 1)
