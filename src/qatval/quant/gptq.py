"""Rounding of weights against the error of a layer's output, by Brevitas' GPTQ.

Rounding to the nearest code makes every weight's own error least. GPTQ (Frantar et al., *GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers*, ICLR 2023) rounds a
layer column by column and lets the weights that are still to be rounded make up for what the last
one did to the layer's output on the calibration images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from brevitas.graph.gptq import GPTQ, gptq_mode
from torch import Tensor, nn
from torch.nn import functional as F

from qatval.quant.layers import quantized_layers


class _Gptq(GPTQ):  # type: ignore[misc]
    """Brevitas' own, with the patches of an input taken by torch.

    Brevitas takes them by a convolution with one-hot kernels, group by group, which for the 256
    groups of a depthwise layer takes longer than all the rest.
    """

    def process_input(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return what each weight column is multiplied by, ``(groups, columns, positions)``."""
        layer: Any = self.layer
        x = layer.input_quant(inputs[0])
        x = getattr(x, "value", x)
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        images, columns, positions = patches.shape
        grouped = patches.view(images, self.groups, columns // self.groups, positions)
        return grouped.permute(1, 2, 0, 3).flatten(2)


@torch.no_grad()
def round_by_gptq(
    model: nn.Module,
    batches: Iterable[Tensor],
    on_layer: Callable[[int], None] = lambda done: None,
) -> nn.Module:
    """Return a copy of a fake-quantized model whose weights round as GPTQ rounds them.

    The layers are rounded in the order in which they run, each with the inputs that the rounded
    layers before it give. Scales, biases and BatchNorm statistics stay as they are.

    Args:
        model: Fake-quantized model, in evaluation mode.
        batches: Calibration images, on its device; held in memory.
        on_layer: Called with the number of layers that are done.
    """
    rounded = deepcopy(model).eval()
    for _, layer in quantized_layers(rounded):
        # GPTQ writes to a flat view of a weight, which one with its channels last does not have.
        layer.weight.data = layer.weight.data.contiguous()
    images = list(batches)
    with gptq_mode(
        rounded, create_weight_orig=False, num_blocks=1, gptq_class=_Gptq, device="same"
    ) as mode:
        for done in range(mode.num_layers):
            for batch in images:
                mode.model(batch)
            mode.update()
            on_layer(done + 1)
    return rounded


def at_most(batches: Iterable[Tensor], images: int) -> Iterable[Tensor]:
    """Yield the first batches until they hold as many images, whole ones."""
    seen = 0
    for batch in batches:
        if seen >= images:
            return
        seen += len(batch)
        yield batch
