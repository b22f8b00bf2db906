"""Rounding of weights against the error of a layer's output, by Brevitas' GPTQ.

Rounding to the nearest code makes every weight's own error least. GPTQ (Frantar et al., *GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers*, ICLR 2023) rounds a
layer column by column and lets the weights that are still to be rounded make up for what the last
one did to the layer's output on the calibration images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qatval.quant.quantized_conv import (
    codes_and_scale,
    quantized_input,
    quantized_layers,
    weight_grid,
)
from qatval.quant.rounding import round_to_codes

with warnings.catch_warnings():
    # Of a transform that GPTQ does not use.
    warnings.filterwarnings("ignore", "fast_hadamard_transform", UserWarning)
    warnings.filterwarnings("ignore", "brevitas.fx is deprecated", DeprecationWarning)
    from brevitas.graph.gptq import GPTQ, gptq_mode


class PerColumn:
    """Faster versions of two methods of Brevitas' column-wise rounding algorithms.

    The patches of an input are taken by torch; Brevitas takes them by a convolution with one-hot
    kernels, group by group, of which a depthwise layer has up to 256. And a column is rounded by
    the layer's scale; Brevitas runs its quantizer for each one.
    """

    layer: Any
    groups: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take a layer whose scales are parameters: they stay as they are while it is rounded."""
        super().__init__(*args, **kwargs)
        _, scale = codes_and_scale(self.layer)
        rows = self.layer.weight.shape[0]
        self._scales = scale.reshape(-1).expand(rows).reshape(self.groups, -1, 1)
        self._grid = weight_grid(self.layer)

    def get_quant_weights(
        self,
        i: int,
        i1: int,
        permutation_list: list[Tensor],
        with_quant_history: bool = False,
    ) -> Tensor:
        """Return column ``i1 + i`` of each group's order rounded, or all the ones before it."""
        at = i1 + i
        rows = self._scales.shape[1]
        columns = self.layer.weight.flatten(1).view(self.groups, rows, -1)
        order = torch.stack(permutation_list).to(columns.device)
        order = order[:, :at] if with_quant_history else order[:, at : at + 1]
        chosen = columns.gather(2, order[:, None].expand(-1, rows, -1))
        codes = round_to_codes(chosen, self._scales, self._grid.low, self._grid.high)
        rounded: Tensor = codes * self._scales
        return rounded if with_quant_history else rounded[:, :, 0]

    def process_input(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return what each weight column is multiplied by, ``(groups, columns, positions)``."""
        layer = self.layer
        x = quantized_input(layer, inputs[0])
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        images, columns, positions = patches.shape
        grouped = patches.view(images, self.groups, columns // self.groups, positions)
        return grouped.permute(1, 2, 0, 3).flatten(2)


class _Gptq(PerColumn, GPTQ):  # type: ignore[misc]
    pass


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
        model: Fake-quantized model with learned scales.
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
