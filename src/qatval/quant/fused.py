"""Fake quantization of all of a model's weights at once, for training.

Brevitas quantizes layer by layer, some twenty small operations each with autograd's bookkeeping
around them: 40 % of a training step of yolo10n. Here one autograd node quantizes every layer, in
five operations forward and a dozen backward, and for the length of one forward each layer is a
plain convolution with the weight it was given. Quantized inputs take one node a layer in place of
Brevitas' ten. Brevitas stays the definition: parameters, ``state_dict``, evaluation, export and
reload are those of its modules, and a quantizer whose weights differ from theirs by one bit is
refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qatval.quant.latent import LatentWeights, flatten, unflatten
from qatval.quant.quantized_conv import (
    Grid,
    compute_again,
    compute_with,
    input_grid,
    input_scales,
    quantized_layers,
    quantized_weight,
)
from qatval.quant.rounding import fake_quantize, gradients, round_to_codes


class FusedQuantizer:
    """The weight quantizers of a model's layers, computed together.

    Gradients are Brevitas', as `qatval.quant.rounding` has them, through scales that are statistics
    too. Values equal Brevitas' bit for bit, and on the CPU so do the gradients; on a GPU the sums
    of the scales' gradients run in another order.

    On the CPU each layer is worked on while it is in the cache. On a GPU, where launches are what
    costs, all layers of one grid are copied into one tensor first.

    Attributes:
        codes: Integer codes of the latest `quantize`, int8, of all layers one after the other in
            the order of `LatentWeights`; empty without ``capture``.
    """

    def __init__(
        self, model: nn.Module, *, capture: bool = False, flat: bool | None = None
    ) -> None:
        """Read the grids and the scales that `qatval.quant.layers.insert_quantizers` made.

        Args:
            model: Fake-quantized model, on the device that it trains on.
            capture: Whether to keep the codes.
            flat: Whether to work on one tensor a grid; None to ask the device.

        Raises:
            ValueError: If the model has no quantized layer, or if a weight differs from Brevitas'.
        """
        self.latent = LatentWeights(model)
        device = self.latent.layers[0].weight.device
        if device.type == "cuda" if flat is None else flat:
            same: dict[Grid, list[int]] = {}
            for number, grid in enumerate(self.latent.grids):
                same.setdefault(grid, []).append(number)
            self.parts: list[_Layer | _Joined] = [
                _Joined(self.latent, numbers) for numbers in same.values()
            ]
        else:
            self.parts = [_Layer(self.latent, number) for number in range(len(self.latent.layers))]
        size = sum(self.latent.sizes) if capture else 0
        self.codes = torch.zeros(size, dtype=torch.int8, device=device)
        each = torch.split(self.codes, self.latent.sizes) if capture else ()
        self._kept = [[each[number] for number in part.layers] for part in self.parts if capture]
        if capture and len(self.parts) == 1:  # everything, in order
            self._kept = [[self.codes]]
        with torch.no_grad():
            for layer, quantized in zip(self.latent.layers, self.quantize(), strict=True):
                if not torch.equal(quantized, quantized_weight(layer)):
                    raise ValueError("fused and Brevitas' own quantization differ in a weight")

    def quantize(self) -> tuple[Tensor, ...]:
        """Return the fake-quantized weights of all layers, differentiable."""
        weights, values = self.latent.weights(), self.latent.values()
        quantized: tuple[Tensor, ...] = _FakeQuantizeAll.apply(self, *weights, *values)
        return quantized

    def keep(self, number: int, codes: Tensor) -> None:
        """Keep the codes of the part of this number, where codes are captured."""
        if not self._kept:
            return
        kept, flat = self._kept[number], self.parts[number].flat(codes)
        if len(kept) == 1:
            kept[0].copy_(flat)
        else:
            torch._foreach_copy_(kept, torch.split(flat, [k.numel() for k in kept]))


class _Layer:
    """One layer, quantized as it is."""

    def __init__(self, latent: LatentWeights, number: int) -> None:
        self.layers = (number,)
        self.grid = latent.grids[number]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the part's own of what there is one of for each layer."""
        return tensors[self.layers[0]]

    def flat(self, joined: Tensor) -> Tensor:
        """Return what `join` joined in one dimension."""
        return flatten(joined)

    def spread(self, scales: Sequence[Tensor]) -> Tensor:
        """Return the part's scales in a shape that broadcasts to what `join` returns."""
        return scales[self.layers[0]].view(-1, 1, 1, 1)

    def divide(self, joined: Tensor) -> Sequence[Tensor]:
        """Return what `join` joined, one tensor a layer in the shape of its weight."""
        return (joined,)

    def to_scales(self, by_code: Tensor, by_ratio: Tensor, scale: Tensor) -> Sequence[Tensor]:
        """Return the gradients to the scales, one flat tensor a layer."""
        total = by_code.sum_to_size(scale.shape) - by_ratio.sum_to_size(scale.shape)
        return (total.reshape(-1),)


class _Joined:
    """Layers of one grid, quantized as one flat tensor; methods as those of `_Layer`."""

    def __init__(self, latent: LatentWeights, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.grid = latent.grids[layers[0]]
        weights = latent.weights()
        self._shapes = [weights[number].shape for number in layers]
        self._sizes = [latent.sizes[number] for number in layers]
        self._counts = [latent.counts[number] for number in layers]
        # How many weights share each of the scales.
        runs = [s // c for s, c in zip(self._sizes, self._counts, strict=True) for _ in range(c)]
        self._runs = torch.tensor(runs, device=weights[0].device)
        self._size = sum(self._sizes)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([flatten(tensors[number]) for number in self.layers])

    def flat(self, joined: Tensor) -> Tensor:
        return joined

    def spread(self, scales: Sequence[Tensor]) -> Tensor:
        joined = torch.cat([scales[number] for number in self.layers])
        return joined.repeat_interleave(self._runs, output_size=self._size)

    def divide(self, joined: Tensor) -> Sequence[Tensor]:
        parts = torch.split(joined, self._sizes)
        return [unflatten(part, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def to_scales(self, by_code: Tensor, by_ratio: Tensor, scale: Tensor) -> Sequence[Tensor]:
        difference = by_code.sub_(by_ratio)
        sums = torch.segment_reduce(difference, "sum", lengths=self._runs, unsafe=True)
        return torch.split(sums, self._counts)


class _FakeQuantizeAll(torch.autograd.Function):
    """All layers of a `FusedQuantizer`: weights and scale values in, quantized weights out."""

    @staticmethod
    def forward(ctx: Any, quantizer: FusedQuantizer, *parameters: Tensor) -> tuple[Tensor, ...]:
        latent = quantizer.latent
        weights, values = parameters[: len(latent.layers)], parameters[len(latent.layers) :]
        flat = torch.cat([value.reshape(-1) for value in values])
        scales = latent.flat_scales(flat)
        joined = [part.join(weights) for part in quantizer.parts]
        ctx.quantizer, ctx.shapes = quantizer, [value.shape for value in values]
        ctx.save_for_backward(flat, scales, *joined)
        each = torch.split(scales, latent.counts)
        quantized: dict[int, Tensor] = {}
        for number, (part, weight) in enumerate(zip(quantizer.parts, joined, strict=True)):
            scale = part.spread(each)
            codes = round_to_codes(weight, scale, part.grid.low, part.grid.high)
            quantizer.keep(number, codes)
            quantized.update(zip(part.layers, part.divide(codes.mul_(scale)), strict=True))
        return tuple(quantized[number] for number in range(len(weights)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        quantizer: FusedQuantizer = ctx.quantizer
        latent = quantizer.latent
        flat, scales, *joined = ctx.saved_tensors
        each = torch.split(scales, latent.counts)
        to_weights: dict[int, Tensor] = {}
        to_scales: dict[int, Tensor] = {}
        for part, weight in zip(quantizer.parts, joined, strict=True):
            scale = part.spread(each)
            to_weight, by_code, by_ratio = gradients(
                part.join(grads), weight, scale, part.grid.low, part.grid.high
            )
            to_weights.update(zip(part.layers, part.divide(to_weight), strict=True))
            sums = part.to_scales(by_code, by_ratio, scale)
            to_scales.update(zip(part.layers, sums, strict=True))
        numbers = range(len(grads))
        to_flat = latent.to_values(torch.cat([to_scales[number] for number in numbers]), flat)
        to_values = [
            part.view(shape)
            for part, shape in zip(torch.split(to_flat, latent.counts), ctx.shapes, strict=True)
        ]
        return None, *(to_weights[number] for number in numbers), *to_values


class _Inputs:
    """The input quantizers of a model's layers, their scales computed together."""

    def __init__(self, layers: Sequence[Any]) -> None:
        grids = {number: input_grid(layer) for number, layer in enumerate(layers)}
        self._grids = {number: grid for number, grid in grids.items() if grid is not None}
        self._layers = [layers[number] for number in self._grids]
        thresholds = [grid.threshold for grid in self._grids.values()]
        self._thresholds = torch.tensor(thresholds, device=layers[0].weight.device)

    def quantizers(self) -> dict[int, partial[Tensor]]:
        """Return what quantizes the input of the layer of this number, differentiable."""
        if not self._layers:
            return {}
        scales = input_scales(self._layers, self._thresholds)
        return {
            number: partial(fake_quantize, scale=scale, low=grid.low, high=grid.high)
            for (number, grid), scale in zip(self._grids.items(), scales, strict=True)
        }


def fuse_quantization(model: nn.Module, *, capture: bool = False) -> FusedQuantizer:
    """Quantize all weights at once whenever the model runs forward in training mode.

    Only while such a forward lasts do the layers differ from Brevitas': afterwards, in evaluation
    mode and in copies of the model they quantize for themselves.

    Args:
        model: Fake-quantized model, on the device that it trains on.
        capture: Whether the codes of each such forward are kept.

    Returns:
        What quantizes; its ``codes`` are those of the latest forward.

    Raises:
        ValueError: As `FusedQuantizer` does.
    """
    quantizer = FusedQuantizer(model, capture=capture)
    layers = quantizer.latent.layers
    inputs = _Inputs(layers)

    def before(module: nn.Module, _: Any) -> None:
        if module.training:
            compute_with(layers, quantizer.quantize(), inputs.quantizers())

    def after(module: nn.Module, *_: Any) -> None:
        if module.training:
            compute_again(layers)

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after, always_call=True)
    return quantizer


@contextlib.contextmanager
def quantized_once(model: nn.Module) -> Iterator[None]:
    """Let a model's weights be quantized now and not in each of the forwards to come.

    For evaluation: the weights are Brevitas' own, without gradients, and must not change meanwhile.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    with torch.no_grad():
        weights = list(map(quantized_weight, layers))
        compute_with(layers, weights, _Inputs(layers).quantizers() if layers else {})
    try:
        yield
    finally:
        compute_again(layers)
