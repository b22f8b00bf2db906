"""Insertion of weight and activation quantizers into a model, and where their scales start.

Every ``Conv2d`` of a model becomes a ``QuantConv2d``, except the layers that the quantization
preset exempts by name. Nothing is skipped without a word: `coverage` lists each layer with its bits
or the reason why it has none, and raises on a layer that has neither.

Where activations are quantized, it is the inputs of these convolutions that are, each with a scale
of its own. What no convolution reads stays in float: the two matrix products of an attention block,
additions, concatenations, upsampling, pooling and the decoding of boxes.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from qatval.core.errors import QatvalError
from qatval.core.measurements import LayerCoverage
from qatval.core.quantization import Quantization, ScaleGranularity
from qatval.quant.quantized_conv import (
    codes_and_scale,
    in_float,
    input_grid,
    input_scale_value,
    quantized_conv,
    quantized_layers,
    weight_grid,
)

# Layers with weights to multiply by: each must be quantized or exempt.
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


def batchnorm_after(model: nn.Module, layer: str) -> nn.BatchNorm2d | None:
    """Return the BatchNorm that directly follows a convolution, or None if none does.

    In Ultralytics' models a convolution and its BatchNorm are always the children ``conv`` and
    ``bn`` of one block.
    """
    parent, _, child = layer.rpartition(".")
    bn = getattr(model.get_submodule(parent), "bn", None) if child == "conv" else None
    return bn if isinstance(bn, nn.BatchNorm2d) else None


def insert_quantizers(model: nn.Module, spec: Quantization) -> list[LayerCoverage]:
    """Replace a model's convolutions by fake-quantized ones, in place.

    Weights and biases are carried over. Each weight scale starts at ``max|w| / largest code``, over
    the layer or over each output channel. A learned one is a parameter from then on, or an average
    made of the model would leave it out. The scales of activations are parameters too, and not
    numbers until `calibrate_activations` or a ``state_dict`` sets them.

    Args:
        model: Float model.
        spec: Bits, grid, scales and exemptions.

    Returns:
        What became of each layer.

    Raises:
        QatvalError: If a layer with weights can be neither quantized nor is exempt.
    """
    with _uncollected():
        for name in quantizable(model, spec):
            module = model.get_submodule(name)
            assert isinstance(module, nn.Conv2d)
            has_bn = batchnorm_after(model, name) is not None
            scale = spec.scale if has_bn else spec.scale_without_batchnorm
            quantized = quantized_conv(
                module,
                weight_bits=spec.weight_bits(name),
                narrow_range=spec.narrow_range,
                scaling=spec.scaling,
                scale=scale,
                activation_bits=spec.activation_bits(name),
            )
            model.set_submodule(name, quantized)
    return coverage(model, spec)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Hold garbage collections back while very many objects are made that stay.

    A fifth of the time that yolo10n's quantizers take would go into walking them again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def quantizable(model: nn.Module, spec: Quantization) -> list[str]:
    """Return the full names of a float model's convolutions that `insert_quantizers` replaces."""
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and spec.exemption(name) is None
    ]


@torch.no_grad()
def calibrate_activations(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set where the learned scales of activations start, in place.

    LSQ's start (Esser et al., ICLR 2020, section 2.1): ``2 * mean|x| / sqrt(largest code)``. The
    mean is that over all batches, with the model in evaluation mode and everything in float, so
    that a scale depends neither on the bits of the weights nor on the order of the layers. (Chosen
    here; LSQ takes the first batch of the training, Gupta & Asthana do not say.)

    Does nothing where no activation is quantized.

    Args:
        model: Fake-quantized model.
        batches: Inputs of the model, on its device: images ``(batch, 3, height, width)``.

    Raises:
        QatvalError: If a layer saw no input, or none that a scale can start from.
    """
    layers = {n: layer for n, layer in quantized_layers(model) if input_grid(layer)}
    if not layers:
        return
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def observe(name: str, x: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + x.abs().sum(dtype=torch.float64)
        counts[name] += x.numel()

    with contextlib.ExitStack() as temporarily:
        temporarily.enter_context(in_float(model))
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(
                lambda _, args, name=name: observe(name, args[0])
            )
            temporarily.callback(hook.remove)
        for batch in batches:
            model(batch)
    for name, layer in layers.items():
        mean = float(sums[name]) / counts[name] if name in sums else 0.0
        if not 0.0 < mean < math.inf:
            raise QatvalError(
                f"cannot calibrate the input of layer '{name}': expected numbers, not all of them "
                f"zero, from the calibration images, got a mean magnitude of {mean}"
            )
        grid = input_grid(layer)
        assert grid is not None
        input_scale_value(layer).fill_(2.0 * mean / math.sqrt(grid.high) * grid.threshold)


def coverage(model: nn.Module, spec: Quantization) -> list[LayerCoverage]:
    """List every layer with weights: its bits, or why it is exempt.

    Raises:
        QatvalError: If a layer is neither quantized nor exempt.
    """
    layers, quantized = [], dict(quantized_layers(model))
    for name, module in model.named_modules():
        if not isinstance(module, _WEIGHTED):
            continue
        shape = tuple(module.weight.shape)
        if (layer := quantized.get(name)) is not None:
            _, scales = codes_and_scale(layer)
            scale: ScaleGranularity = "per-channel" if scales.dim() else "per-tensor"
            activations = input_grid(layer)
            layers.append(
                LayerCoverage(
                    name=name,
                    shape=shape,
                    bits=weight_grid(layer).bits,
                    scale=scale,
                    reason=None,
                    activation_bits=activations.bits if activations else None,
                )
            )
        elif reason := spec.exemption(name):
            layers.append(
                LayerCoverage(
                    name=name,
                    shape=shape,
                    bits=None,
                    scale=None,
                    reason=reason,
                    activation_bits=None,
                )
            )
        else:
            raise QatvalError(
                f"layer '{name}' ({type(module).__name__}) is neither quantized nor on the "
                f"exemption list of '{spec.mode}': name it there with a reason, or extend the "
                "insertion"
            )
    return layers
