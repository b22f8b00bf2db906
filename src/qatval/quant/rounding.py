"""The arithmetic of fake quantization: rounding to a grid, and the gradients past it.

Weights and activations are quantized alike, ``clamp(round(x / s), low, high) * s``. Gradients are
those of learned step size quantization (LSQ; Esser et al., ICLR 2020, equations 3 and 5): rounding
passes them straight through, the clamp stops those to what lies outside of it, and the scale gets
``sum(g * code) - sum(g_inside * x / s)``.

LSQ also multiplies the scale's gradient by ``1 / sqrt(n * high)`` for ``n`` quantized numbers.
Brevitas does not, and hence neither does qatval. Optimizers that divide a gradient by its own
magnitude, as Adam and AdamW do, take the same steps either way. What the factor would change is the
scales' part in the norm that gradients are clipped by (a few per cent in yolo10n), and plain SGD.

Brevitas clips after rounding, as Gupta & Asthana write it, and LSQ before: what lies beyond the
last code by less than half a step counts as inside here and as outside there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def round_to_codes(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Return the codes of ``x``, in its floating type; ``scale`` must broadcast to its shape."""
    return (x / scale).round_().clamp_(low, high)


def gradients(
    grad: Tensor, x: Tensor, scale: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient to ``x``, and what it takes to sum that to the scale.

    The order of operations is that of Brevitas' graph, so that not even a last bit differs. The
    ratio is computed again instead of being kept: that costs less than the memory it would take.

    Args:
        grad: Gradient to the quantized numbers, in the shape of ``x``.

    Returns:
        The gradient to ``x``, ``g * code`` and ``g_inside * x / s``, each in the shape of ``x``.
    """
    ratio = x / scale
    codes = ratio.round()
    # hardtanh's backward passes what lies strictly inside its bounds, in one operation.
    inside = grad * scale
    torch.ops.aten.hardtanh_backward(inside, codes, low - 0.5, high + 0.5, grad_input=inside)
    by_code = codes.clamp_(low, high).mul_(grad)
    by_ratio = ratio.div_(scale).mul_(inside)
    return inside.div_(scale), by_code, by_ratio


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in a type in which 8-bit codes are exact, whatever mixed precision made of it.

    In 16 bits the ratio to the scale would be rounded before it is rounded to a code, and the sum
    of a scale's gradient over all activations would overflow.
    """
    return x.float() if x.dtype.itemsize < 4 else x


def fake_quantize(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Fake-quantize activations with one scale, differentiable in both.

    Args:
        x: Activations of any shape.
        scale: ``()``, positive.
        low, high: Smallest and largest code.
    """
    quantized: Tensor = _FakeQuantize.apply(at_least_float32(x), scale, low, high)
    return quantized


class _FakeQuantize(torch.autograd.Function):
    """`fake_quantize` as one node: Brevitas' ten would keep an activation each for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds = low, high
        return round_to_codes(x, scale, low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, scale = ctx.saved_tensors
        to_x, by_code, by_ratio = gradients(grad, x, scale, *ctx.bounds)
        to_scale = by_code.sum() - by_ratio.sum() if ctx.needs_input_grad[1] else None
        return to_x, to_scale, None, None
