"""What may have broken a model, one repair each: what restores it says what broke it.

A model that fell is compared with the best weights before the fall and, if it is an average, with
the weights that it averages. Repairs are given in an order in which none hides what a later one
would tell, since the later ones repair more: a scale that left its value moves every activation
behind it, so fresh statistics repair that too (``docs/collapse.md``), but putting a scale back
repairs no statistics that lag behind weights. What repairs many places at once is followed by the
same in the likeliest single ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from qatval.core.measurements import Repaired
from qatval.quant.batchnorm import drift, measure, replace, statistics, tracking
from qatval.quant.layers import batchnorm_after
from qatval.quant.quantized_conv import (
    learned_scales,
    quantize_nothing,
    quantized_layers,
    weight_scale_value,
)

SUSPICIOUS: Final = 2.0
"""A scale that differs from another by this factor or more has left its value.

Chosen here: in the collapse that one number made it was 18 (``docs/collapse.md``).
"""

_MOST_LAYERS: Final = 3  # that are repaired alone

Batches = Callable[[], Iterable[Tensor]]

Scales = Mapping[str, Sequence[Tensor]]
"""The parameters behind each layer's learned scales, see `learned_scales`, or values for them."""


@dataclass(frozen=True)
class Fallen:
    """A model that fell, and what it is compared with: all fake-quantized or all float.

    Attributes:
        model: The model; it is left as it is, as the others are.
        good: The best weights before the fall.
        raw: The weights that the model averages, None where it is no average.
        images: Returns batches of training images, ``(batch, 3, height, width)`` on the models'
            device, from the first one on.
        head: What the full names of the head's layers begin with.
    """

    model: nn.Module
    good: nn.Module
    raw: nn.Module | None
    images: Batches
    head: str


@dataclass(frozen=True)
class Repair:
    """A model with one thing repaired.

    Attributes:
        of: What was repaired.
        layer: Where, by full name, or where it began; None for everywhere.
        made: Returns the model.
        within: Repairs of the same in one place each, the likeliest first, to look at only if this
            one restores the model.
    """

    of: Repaired
    layer: str | None
    made: Callable[[], nn.Module]
    within: Sequence[Repair] = ()


def repairs(fallen: Fallen) -> Iterator[Repair]:
    """Yield what may restore a model; what it takes to make one is done when it is asked for."""
    model, raw = fallen.model, fallen.raw
    if raw is not None:
        yield from _scales("averaged scale", model, _held_by_statistics(model, raw))
    yield from _scales("scale", model, learned_scales(fallen.good))
    yield _statistics(fallen)
    if raw is not None:
        yield Repair("average", None, lambda: raw)
    if any(True for _ in quantized_layers(model)):
        head = Repair("rounding", fallen.head, lambda: _in_float(fallen, fallen.head))
        yield Repair("rounding", None, lambda: _in_float(fallen, ""), [head])


def _scales(of: Repaired, model: nn.Module, sound: Scales) -> Iterator[Repair]:
    """Yield the model with the magnitudes of sound scales where its own are far from them."""
    apart = _apart(learned_scales(model), sound)

    def repair(layers: Sequence[str]) -> Repair:
        alone = layers[0] if len(layers) == 1 else None
        within = [] if alone else [repair([name]) for name in layers[:_MOST_LAYERS]]
        return Repair(of, alone, lambda: _with_scales(model, sound, layers), within)

    if apart:
        yield repair(apart)


@torch.no_grad()
def _held_by_statistics(model: nn.Module, raw: nn.Module) -> Scales:
    """Return the scales that the BatchNorm statistics of an average fit.

    What a layer puts out varies with the square of its scale, and the variance behind it was
    averaged over the same steps. So the root of what that has changed by, times the raw scale, is
    the root mean square of the scale, whatever signs it had. The raw scale itself, where it has
    just jumped, would fit its own statistics and not these.
    """
    scales, found = learned_scales(raw), dict[str, list[Tensor]]()
    for name, layer in quantized_layers(raw):
        weight = weight_scale_value(layer)
        ours, theirs = batchnorm_after(model, name), batchnorm_after(raw, name)
        change = torch.ones_like(weight)
        if ours is not None and theirs is not None:
            _, averaged = statistics(ours)
            _, latest = statistics(theirs)
            ratio = (averaged / latest.clamp_min(torch.finfo(latest.dtype).tiny)).sqrt()
            change = (ratio if weight.numel() > 1 else ratio.median()).view(weight.shape)
        found[name] = [
            scale.abs() * change if scale is weight else scale.abs() for scale in scales[name]
        ]
    return found


@torch.no_grad()
def _apart(ours: Scales, theirs: Scales) -> list[str]:
    """Return the layers whose scales differ by `SUSPICIOUS` or more, the furthest apart first."""
    least = torch.finfo(torch.float32).tiny  # a scale of 0 is infinitely far from no other 0
    octaves = {
        name: max(
            float((a.abs().clamp_min(least) / b.abs().clamp_min(least)).log2().abs().max())
            for a, b in zip(scales, theirs[name], strict=True)
        )
        for name, scales in ours.items()
        if scales
    }
    bar = math.log2(SUSPICIOUS)
    return sorted((n for n, apart in octaves.items() if apart >= bar), key=lambda n: -octaves[n])


@torch.no_grad()
def _with_scales(model: nn.Module, sound: Scales, layers: Iterable[str]) -> nn.Module:
    repaired = deepcopy(model)
    scales = learned_scales(repaired)
    for name in layers:
        for scale, value in zip(scales[name], sound[name], strict=True):
            scale.copy_(value.abs())
    return repaired


def _statistics(fallen: Fallen) -> Repair:
    """Return the model with fresh BatchNorm statistics; within, behind the layer furthest off.

    Statistics that are not finite are left of an overflow, for good, and weights may not know of
    it: in mixed precision its step is skipped. All layers behind have them too.
    """
    fresh = measure(fallen.model, fallen.images())

    def everywhere() -> nn.Module:
        return _with_statistics(fallen.model, fresh)

    for name, layer in tracking(fallen.model):
        if not all(bool(torch.isfinite(kept).all()) for kept in statistics(layer)):
            return Repair("overflow", name, everywhere)
    worst = drift(fallen.model, everywhere(), images=1).worst_layer
    alone = Repair(
        "statistics", worst, lambda: _with_statistics(fallen.model, {worst: fresh[worst]})
    )
    return Repair("statistics", None, everywhere, [alone])


def _with_statistics(model: nn.Module, found: Mapping[str, tuple[Tensor, Tensor]]) -> nn.Module:
    repaired = deepcopy(model)
    replace(repaired, dict(found))
    return repaired


def _in_float(fallen: Fallen, below: str) -> nn.Module:
    """Return the model with latent weights that nothing rounds, and statistics that fit them."""
    repaired = deepcopy(fallen.model)
    quantize_nothing(repaired, below)
    replace(repaired, measure(repaired, fallen.images()))
    return repaired
