"""BatchNorm statistics: fresh ones, and how far the running ones had drifted from them.

The running statistics lag behind weights that jump from one code to another at every step (Nagel
et al., *Overcoming Oscillations in Quantization-Aware Training*, ICML 2022, who re-estimate them
after training). Fresh statistics are therefore the control of whatever is said to correct a
quantized model afterwards.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor, nn

from qatval.core.measurements import BatchNormDrift, LayerDrift

_BatchNorm: TypeAlias = nn.modules.batchnorm._BatchNorm


Statistics: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of each channel, by the full name of the BatchNorm layer."""


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Tensor]) -> Statistics:
    """Return the statistics of these batches, and leave the model as it is.

    The mean over the batches of the batch means, and of the batch variances (unbiased, as torch
    keeps them); batches count alike, whatever their sizes. BatchNorm normalises by the batch
    meanwhile, all other modules run in evaluation mode. The random state stays as it is.

    Args:
        model: Any model; quantized weights are quantized as in evaluation.
        batches: What the model takes, one batch after the other, on its device.

    Returns:
        Those of the layers that a batch has reached.

    Raises:
        ValueError: If there is no batch.
    """
    layers = dict(tracking(model))
    known = {name: (deepcopy(layer.state_dict()), layer.momentum) for name, layer in layers.items()}
    with in_evaluation(model):
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None  # torch's cumulative average
            layer.train()
        try:
            seen = sum(1 for batch in batches if model(batch) is not None)
            if not seen:
                raise ValueError("there is no batch to estimate BatchNorm statistics from")
            reached = {name: layer for name, layer in layers.items() if layer.num_batches_tracked}
            return {
                name: (mean.clone(), var.clone())
                for name, layer in reached.items()
                for mean, var in [statistics(layer)]
            }
        finally:
            for name, layer in layers.items():
                state, layer.momentum = known[name]
                layer.load_state_dict(state)


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def replace(model: nn.Module, found: Statistics) -> None:
    """Give the layers of a model other statistics, in place; those without any keep theirs."""
    for name, layer in tracking(model):
        if name in found:
            for kept, new in zip(statistics(layer), found[name], strict=True):
                kept.copy_(new)


def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Return a copy of a model with the statistics of these batches alone; see `measure`."""
    copy = deepcopy(model)
    replace(copy, measure(copy, batches))
    return copy


@torch.no_grad()
def drift(model: nn.Module, reestimated: nn.Module, images: int) -> BatchNormDrift:
    """Compare a model's running statistics with fresh ones, layer by layer.

    Per channel, with the normal distributions that have the statistics' means and variances::

        KL(fresh || running) = (log(vr / vf) + (vf + (mf - mr)^2) / vr - 1) / 2

    that is, what it costs to take activations for distributed as the running statistics say. The
    variances include BatchNorm's own eps, as the normalisation does: a dead channel, whose
    variance is 0 in both, has not drifted.

    Args:
        model: The model with its running statistics.
        reestimated: What `reestimate` made of it.
        images: How many it was made with, for the record.

    Raises:
        ValueError: If the two do not have the same BatchNorm layers.
    """
    running, fresh = dict(tracking(model)), dict(tracking(reestimated))
    if running.keys() != fresh.keys():
        raise ValueError(
            "the models have different BatchNorm layers: "
            f"{sorted(running.keys() ^ fresh.keys())[:3]} ..."
        )
    found: list[LayerDrift] = []
    for name, layer in running.items():
        mr, vr = _normal(layer)
        mf, vf = _normal(fresh[name])
        kl = ((vr / vf).log() + (vf + (mf - mr).square()) / vr - 1.0) / 2.0
        kl.clamp_(min=0.0)  # rounding can leave it a little below
        found.append(LayerDrift(name, float(kl.mean()), float(kl.max())))
    worst = max(found, key=lambda layer: layer.kl_max)
    mean = math.fsum(layer.kl_mean for layer in found) / len(found)
    return BatchNormDrift(images, mean, worst.kl_max, worst.name, tuple(found))


def tracking(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yield the BatchNorm layers that keep statistics, by full name."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module


def _normal(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return means and variances, in float64: the divergence is a difference of near-equals."""
    mean, var = statistics(layer)
    return mean.double(), var.double() + layer.eps


def statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of a layer that keeps them, as they are."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var
