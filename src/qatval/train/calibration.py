"""Training images that serve after the gradient steps, and QC, which is learned on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Subset as ImageSubset
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from qatval.core.detectors import detector_of
from qatval.core.measurements import QcChange
from qatval.data.subset import Subset
from qatval.quant.correction import attach_corrections, corrections, fold_corrections
from qatval.train.dataset import SubsetDataset


class CalibrationImages:
    """Images drawn from a run's training split, not augmented, always in the same batches."""

    def __init__(
        self,
        subset: Subset,
        wanted: int,
        arguments: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Draw the images.

        Args:
            subset: The run's data.
            wanted: How many images to draw, at most.
            arguments: Ultralytics' arguments (imgsz, batch, workers, loss gains).
            seed: Seed of the drawing.
            device: Where batches go.
        """
        self.args = get_cfg(DEFAULT_CFG, {**arguments, "task": "detect", "mode": "train"})
        dataset = SubsetDataset(subset.train, subset.class_names, self.args, batch=self.args.batch)
        drawn = np.random.default_rng(seed).permutation(len(subset.train))[:wanted].tolist()
        self.count = len(drawn)
        self.device = device
        self._loader: DataLoader[Any] = DataLoader(
            ImageSubset(dataset, drawn),
            batch_size=self.args.batch,
            collate_fn=dataset.collate_fn,
            num_workers=self.args.workers if device.type == "cuda" else 0,
        )

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches as Ultralytics' models take them, images in [0, 1]."""
        for batch in self._loader:
            for key, value in batch.items():
                if isinstance(value, torch.Tensor):
                    batch[key] = value.to(self.device)
            batch["img"] = batch["img"].float() / 255
            yield batch

    def pixels(self) -> Iterator[torch.Tensor]:
        """Yield the batches' images alone, ``(batch, 3, imgsz, imgsz)`` in [0, 1]."""
        for batch in self:
            yield batch["img"]


def learn_correction(
    model: nn.Module,
    images: CalibrationImages,
    *,
    epochs: int,
    lr: float,
    names: Collection[str],
    on_step: Callable[[int, float], None],
) -> tuple[nn.Module, dict[str, QcChange]]:
    """Learn gamma and beta with Adam on the task loss and fold them into the model.

    The loss's terms weigh what they do at the end of a training. Arithmetic is float32 on every
    device. A model whose loss is not finite, as its statistics overflowed, teaches nothing.

    Args:
        model: Model to correct; it is left as it is.
        images: What to learn on.
        epochs: Passes over the images.
        lr: Learning rate.
        names: Full names of the convolutions to correct.
        on_step: Called with the step, counted from 1, and its loss.

    Returns:
        The corrected model, and what changed per layer.
    """
    corrected: Any = attach_corrections(model, names).to(images.device).train()
    for module in corrected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics stay fixed, also where its layer is not quantized
    corrected.args = images.args
    corrected.criterion = corrected.init_criterion()
    detector_of(corrected.yaml["yaml_file"]).settle(corrected.criterion)
    parameters = [p for _, c in corrections(corrected) for p in (c.gamma, c.beta)]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    batches = (batch for _ in range(epochs) for batch in images)
    for step, batch in enumerate(batches, start=1):
        loss = corrected.loss(batch, corrected(batch["img"]))[0].sum()
        if not torch.isfinite(loss):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(step, float(loss.detach()))
    with torch.no_grad():
        changes = {
            name: QcChange(
                gamma_min=float(c.gamma.min()),
                gamma_max=float(c.gamma.max()),
                gamma_mean_abs_change=float((c.gamma - 1.0).abs().mean()),
                beta_max_abs=float(c.beta.abs().max()),
            )
            for name, c in corrections(corrected)
        }
    corrected.to(next(model.buffers()).device)
    return fold_corrections(corrected, model), changes
