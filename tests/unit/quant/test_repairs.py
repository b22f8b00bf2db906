"""What breaks a model is restored by the repair of its name, and by none that comes before it."""

from __future__ import annotations

import dataclasses
from copy import deepcopy

import pytest
import torch
from torch import nn

from qatval.quant.batchnorm import reestimate
from qatval.quant.quantized_conv import quantized_layers, weight_scale_value
from qatval.quant.repairs import Fallen, Repair, repairs
from qatval.run.autopsy import MOST_MEASURED, MOST_SCORED

from .conftest import LAYERS, W4A4, W4A16, float_model, images, quantized_model


def batches():
    return [images(5), images(6)]


def well(spec=W4A16):
    """A model whose statistics fit it, so that fresh ones change little."""
    return reestimate(quantized_model(spec), batches()).eval()


def scale_of(model, name):
    return weight_scale_value(dict(quantized_layers(model))[name])


@torch.no_grad()
def distance(model: nn.Module, to: nn.Module) -> float:
    x = images(5)
    return float((model(x) - to(x)).norm())


def restoring(fallen: Fallen, to: nn.Module) -> Repair | None:
    """Return the first repair that comes closer than half-way to a model, the narrowest of its."""
    half = 0.5 * distance(fallen.model, to)
    assert half > 0
    for repair in repairs(fallen):
        if distance(repair.made(), to) < half:
            within = [r for r in repair.within if distance(r.made(), to) < half]
            return within[0] if within else repair
    return None


def fallen(model, good, raw=None, head="2"):
    return Fallen(model, good, raw, batches, head)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("factor", [0.0, 0.05, -0.1, 8.0])
def test_a_scale_that_left_its_value_is_named(name, factor):
    good = well()
    broken = deepcopy(good)
    with torch.no_grad():
        scale_of(broken, name).mul_(factor)
    found = restoring(fallen(broken, good), good)
    assert found is not None
    assert (found.of, found.layer) == ("scale", name)


def test_several_scales_that_left_their_values_are_named_together():
    good = well()
    broken = deepcopy(good)
    with torch.no_grad():
        for name, factor in zip(LAYERS, (0.2, 0.1, 8.0), strict=True):
            scale_of(broken, name).mul_(factor)
    found = restoring(fallen(broken, good), good)
    assert found is not None
    assert (found.of, found.layer) == ("scale", None)
    furthest_first = [LAYERS[1], LAYERS[2], LAYERS[0]]
    assert [repair.layer for repair in found.within] == furthest_first


def test_a_scale_that_moved_by_less_than_two_is_no_suspect():
    good = well()
    moved = deepcopy(good)
    with torch.no_grad():
        scale_of(moved, LAYERS[0]).mul_(-1.9)
    assert "scale" not in {repair.of for repair in repairs(fallen(moved, good))}


def test_an_average_on_its_way_through_zero_is_no_fault_of_the_raw_scale():
    good = well()
    raw = deepcopy(good)
    average = deepcopy(good)
    with torch.no_grad():
        scale_of(raw, LAYERS[1]).neg_()
        scale_of(average, LAYERS[1]).mul_(0.02)
    found = restoring(fallen(average, good, raw), good)
    assert found is not None
    assert (found.of, found.layer) == ("averaged scale", LAYERS[1])


@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
@pytest.mark.parametrize("spec", [W4A16, W4A4], ids=["w4a16", "w4a4"])
def test_an_average_of_a_scale_that_jumped_past_zero_is_set_to_what_its_statistics_hold(
    spec, granularity
):
    """Of two steps: 1 and -9 make an average of -4, statistics of the root of 41, and a raw -9."""
    good = well(dataclasses.replace(spec, scale=granularity))
    name = LAYERS[1]
    raw, average = deepcopy(good), deepcopy(good)
    with torch.no_grad():
        raw_bn, average_bn = raw.get_submodule("1.bn"), average.get_submodule("1.bn")
        scale_of(raw, name).mul_(-9.0)
        raw_bn.running_var.mul_(81.0)
        raw_bn.running_mean.mul_(9.0)
        scale_of(average, name).mul_(-4.0)
        average_bn.running_var.mul_(41.0)
        average_bn.running_mean.mul_(5.0)
    first = next(iter(repairs(fallen(average, good, raw))), None)
    assert first is None or first.of != "averaged scale"  # 4 and 6.4 are not a factor of 2 apart
    with torch.no_grad():
        scale_of(average, name).mul_(-0.05)
    first = next(iter(repairs(fallen(average, good, raw))))
    assert (first.of, first.layer) == ("averaged scale", name)
    expected = scale_of(good, name) * 41.0**0.5
    torch.testing.assert_close(scale_of(first.made(), name), expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("spec", [W4A16, W4A4, None], ids=["w4a16", "w4a4", "fp32"])
def test_stale_statistics_are_named_and_their_layer(spec):
    model = float_model() if spec is None else quantized_model(spec)
    good = reestimate(model, batches()).eval()
    stale = deepcopy(good)
    stale.get_submodule("1.bn").running_var.mul_(50.0)
    found = restoring(fallen(stale, good), good)
    assert found is not None
    assert (found.of, found.layer) == ("statistics", "1.bn")
    for layer in ("0.bn", "1.bn"):
        stale.get_submodule(layer).running_var.mul_(50.0)
    found = restoring(fallen(stale, good), good)
    assert found is not None
    assert (found.of, found.layer) == ("statistics", None)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_overflow_is_named_where_it_began(number):
    good = well()
    broken = deepcopy(good)
    for layer in ("1.bn", "0.bn"):  # it goes on through all layers behind
        broken.get_submodule(layer).running_var.fill_(number)
    found = next(r for r in repairs(fallen(broken, good)) if distance(r.made(), good) < 1e-3)
    assert (found.of, found.layer) == ("overflow", "0.bn")


def test_an_average_between_weights_that_each_hold_is_named():
    good = well()
    average = deepcopy(good)
    with torch.no_grad():
        for parameter in average.parameters():
            if parameter.dim() == 4:
                parameter.copy_(parameter.flip(0))
    found = restoring(fallen(average, good, raw=good), good)
    assert found is not None
    assert (found.of, found.layer) == ("average", None)


@pytest.mark.parametrize("spec", [W4A16, W4A4], ids=["w4a16", "w4a4"])
def test_what_rounding_alone_breaks_is_named(spec):
    good = reestimate(float_model(), batches()).eval()
    rounded = well(spec)
    found = restoring(fallen(rounded, rounded), good)
    assert found is not None
    assert (found.of, found.layer) in {("rounding", None), ("rounding", "2")}


def test_nothing_is_found_where_the_weights_are_what_broke():
    good = well()
    broken = deepcopy(good)
    with torch.no_grad():
        broken.get_submodule("2").weight.neg_()  # no BatchNorm behind it
    assert restoring(fallen(broken, good), good) is None


def test_repairs_leave_the_models_as_they_are_and_end_within_the_budget():
    raw, good, model = (quantized_model(W4A4, seed) for seed in range(3))
    with torch.no_grad():
        for name in LAYERS:
            scale_of(model, name).mul_(0.1)
    before = [deepcopy(m.state_dict()) for m in (model, good, raw)]
    measured = []

    def counted():
        measured.append(1)
        return batches()

    state = torch.get_rng_state()
    ways = []
    for repair in repairs(Fallen(model, good, raw, counted, "2")):
        repair.made()
        for narrower in repair.within:
            narrower.made()
        ways.append(len(repair.within))
    for kept, after in zip(before, (model, good, raw), strict=True):
        for name, tensor in after.state_dict().items():
            assert torch.equal(tensor, kept[name]), name
    assert torch.equal(state, torch.get_rng_state())
    longest = max(number + within for number, within in enumerate(ways, start=1))
    assert len(ways) == 5
    assert 2 + longest <= MOST_SCORED  # the broken model and the best one are scored too
    assert len(measured) <= MOST_MEASURED
