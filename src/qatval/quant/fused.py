"""Fake quantization of all of a model's weights at once, for training.

Brevitas quantizes layer by layer, some twenty small operations each with autograd's bookkeeping
around them: 40 % of a training step of yolo10n. Here one autograd node quantizes every layer, in
five operations forward and a dozen backward, and for the length of one forward each layer is a
plain convolution with the weight it was given. Brevitas stays the definition: parameters,
``state_dict``, evaluation, export and reload are those of its modules, and a quantizer whose
weights differ from theirs by one bit is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qatval.quant.layers import quantized_layers


class FusedQuantizer:
    """The weight quantizers of a model's layers, computed together.

    With ``s = max(|value|, min) / threshold`` per scale, a weight becomes
    ``clamp(round(w / s)) * s``. Gradients are Brevitas': rounding passes them straight through,
    the clamp stops those to weights outside of it, and a scale gets
    ``sum(g * code) - sum(g_inside * w / s)``. Values equal Brevitas' bit for bit, and on the CPU
    so do the gradients; on a GPU the sums of the scales' gradients run in another order.

    On the CPU each layer is worked on while it is in the cache. On a GPU, where launches are what
    costs, all layers are copied into one tensor first.
    """

    def __init__(self, model: nn.Module, *, flat: bool | None = None) -> None:
        """Read the grid and the scales that `qatval.quant.layers.insert_quantizers` made.

        Args:
            model: Fake-quantized model, on the device that it trains on.
            flat: Whether to work on one tensor that holds all layers; None to ask the device.

        Raises:
            ValueError: If the model has no quantized layer, if its layers have different grids,
                or if a weight differs from Brevitas'.
        """
        self.layers: list[Any] = [layer for _, layer in quantized_layers(model)]
        if not self.layers:
            raise ValueError("the model has no quantized layer")
        quantizers = [layer.weight_quant.tensor_quant for layer in self.layers]
        self._scalings: list[Any] = [quantizer.scaling_impl for quantizer in quantizers]
        grids = {_grid(quantizer) for quantizer in quantizers}
        if len(grids) > 1:
            raise ValueError(f"layers have different grids: {sorted(grids)}")
        ((self.low, self.high, threshold, self.min_value),) = grids
        weights, values = self.weights(), self.values()
        self.counts = [value.numel() for value in values]
        self.sizes = [weight.numel() for weight in weights]
        device = weights[0].device
        # A tensor: on a GPU, division by a Python number is a multiplication by its reciprocal.
        self.threshold = torch.tensor(threshold, device=device)
        self.flat = device.type == "cuda" if flat is None else flat
        self.runs = torch.tensor(
            [s // c for s, c in zip(self.sizes, self.counts, strict=True) for _ in range(c)],
            device=device,
        )
        with torch.no_grad():
            for layer, quantized in zip(self.layers, self.quantize(), strict=True):
                if not torch.equal(quantized, layer.quant_weight().value):
                    raise ValueError("fused and Brevitas' own quantization differ in a weight")

    def weights(self) -> list[Tensor]:
        """Return the latent weights, ``(out, in / groups, height, width)`` each."""
        return [layer.weight for layer in self.layers]

    def values(self) -> list[Tensor]:
        """Return the parameters behind the scales, ``()`` or ``(out, 1, 1, 1)`` each."""
        return [scaling.value for scaling in self._scalings]

    def quantize(self) -> tuple[Tensor, ...]:
        """Return the fake-quantized weights of all layers, differentiable."""
        quantized: tuple[Tensor, ...] = _FakeQuantize.apply(self, *self.weights(), *self.values())
        return quantized


def fuse_quantization(model: nn.Module) -> None:
    """Quantize all weights at once whenever the model runs forward in training mode.

    Only while such a forward lasts do the layers differ from Brevitas': afterwards, in evaluation
    mode and in copies of the model they quantize for themselves.

    Args:
        model: Fake-quantized model, on the device that it trains on.

    Raises:
        ValueError: As `FusedQuantizer` does.
    """
    quantizer = FusedQuantizer(model)

    def before(module: nn.Module, _: Any) -> None:
        if module.training:
            _hand_out(quantizer.layers, quantizer.quantize())

    def after(module: nn.Module, *_: Any) -> None:
        if module.training:
            _take_back(quantizer.layers)

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after, always_call=True)


@contextlib.contextmanager
def quantized_once(model: nn.Module) -> Iterator[None]:
    """Let a model's weights be quantized now and not in each of the forwards to come.

    For evaluation: the weights are Brevitas' own, without gradients, and must not change meanwhile.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    with torch.no_grad():
        _hand_out(layers, [layer.quant_weight().value for layer in layers])
    try:
        yield
    finally:
        _take_back(layers)


def _hand_out(layers: Sequence[Any], weights: Sequence[Tensor]) -> None:
    """Make each layer a plain convolution with the weight it is given."""
    for layer, weight in zip(layers, weights, strict=True):
        layer.forward = partial(
            layer.inner_forward_impl, quant_weight=weight, quant_bias=layer.bias
        )


def _take_back(layers: Sequence[Any]) -> None:
    for layer in layers:
        layer.__dict__.pop("forward", None)


def _grid(quantizer: Any) -> tuple[float, float, float, float]:
    """Return the least and the largest code, the scale's threshold and the value's minimum."""
    bits = quantizer.msb_clamp_bit_width_impl()
    grid, scaling = quantizer.int_quant, quantizer.scaling_impl
    return (
        float(grid.min_int(bits)),
        float(grid.max_int(bits)),
        float(quantizer.int_scaling_impl(bits)),
        scaling.clamp_scaling.min_val or 0.0,
    )


class _FakeQuantize(torch.autograd.Function):
    """All layers of a `FusedQuantizer`: weights and scale values in, quantized weights out."""

    @staticmethod
    def forward(ctx: Any, quantizer: FusedQuantizer, *parameters: Tensor) -> tuple[Tensor, ...]:
        q, layers = quantizer, len(quantizer.layers)
        weights = parameters[:layers]
        values = _flattened(parameters[layers:])
        scales = values.abs().clamp_(min=q.min_value).div_(q.threshold)
        ctx.quantizer = q
        ctx.save_for_backward(values, scales, *weights)
        if q.flat:
            spread = scales.repeat_interleave(q.runs, output_size=sum(q.sizes))
            parts = torch.split(_quantized(_flattened(weights), spread, q.low, q.high), q.sizes)
            return tuple(part.view_as(w) for part, w in zip(parts, weights, strict=True))
        return tuple(
            _quantized(w, s.view(-1, 1, 1, 1), q.low, q.high)
            for w, s in zip(weights, torch.split(scales, q.counts), strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q = ctx.quantizer
        values, scales, *weights = ctx.saved_tensors
        to_weights: Sequence[Tensor]
        if q.flat:
            spread = scales.repeat_interleave(q.runs, output_size=sum(q.sizes))
            joined, by_code, by_ratio = _gradients(
                _flattened(grads), _flattened(weights), spread, q.low, q.high
            )
            to_scales = torch.segment_reduce(
                by_code.sub_(by_ratio), "sum", lengths=q.runs, unsafe=True
            )
            parts = torch.split(joined, q.sizes)
            to_weights = [part.view_as(w) for part, w in zip(parts, weights, strict=True)]
        else:
            to_weights, sums = [], []
            for grad, w, s in zip(grads, weights, torch.split(scales, q.counts), strict=True):
                scale = s.view(-1, 1, 1, 1)
                to_weight, by_code, by_ratio = _gradients(grad, w, scale, q.low, q.high)
                to_weights.append(to_weight)
                sums.append(by_code.sum_to_size(scale.shape) - by_ratio.sum_to_size(scale.shape))
            to_scales = _flattened(sums)
        to_values = torch.split(to_scales.div_(q.threshold).mul_(values.sgn()), q.counts)
        shaped = [g.view_as(v) for g, v in zip(to_values, q.values(), strict=True)]
        return None, *to_weights, *shaped


def _flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _quantized(weight: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    return (weight / scale).round_().clamp_(low, high).mul_(scale)


def _gradients(
    grad: Tensor, weight: Tensor, scale: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient to the weight, and what it takes to sum that to the scale.

    The order of operations is that of Brevitas' graph, so that not even a last bit differs. The
    ratio is computed again instead of being kept: that costs less than the memory it would take.
    """
    ratio = weight / scale
    codes = ratio.round()
    # hardtanh's backward passes what lies strictly inside its bounds, in one operation.
    inside = grad * scale
    torch.ops.aten.hardtanh_backward(inside, codes, low - 0.5, high + 0.5, grad_input=inside)
    by_code = codes.clamp_(low, high).mul_(grad)
    by_ratio = ratio.div_(scale).mul_(inside)
    return inside.div_(scale), by_code, by_ratio
