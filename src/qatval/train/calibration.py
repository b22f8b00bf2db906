"""Training images that serve after the gradient steps, and QC, which is learned on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Subset as ImageSubset
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from qatval.core.detectors import detector_of
from qatval.core.summary import QcChange
from qatval.data.subset import Subset
from qatval.quant.anchoring import Anchor
from qatval.quant.correction import attach_corrections, corrections, fold_corrections
from qatval.quant.methods import calibration_images
from qatval.train.dataset import SubsetDataset
from qatval.train.models import load_pretrained
from qatval.train.trajectory import TrainingPlan


def draw(train_images: int, wanted: int, seed: int) -> list[int]:
    """Draw the indices of the calibration images among a run's training images, in visit order."""
    rng = np.random.default_rng(seed)
    drawn: list[int] = rng.permutation(train_images)[:wanted].tolist()
    return drawn


class CalibrationImages:
    """Images drawn from a run's training split, without augmentation, always in the same batches.

    Whatever is compared with each other after training sees exactly these.
    """

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
        dataset = SubsetDataset(
            subset.train,
            subset.class_names,
            imgsz=self.args.imgsz,
            batch=self.args.batch,
            augment=False,
            args=self.args,
        )
        drawn = draw(len(subset.train), wanted, seed)
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
            moved = {
                k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
            }
            moved["img"] = moved["img"].float() / 255
            yield moved

    def pixels(self) -> Iterator[torch.Tensor]:
        """Yield the batches' images alone, ``(batch, 3, imgsz, imgsz)`` in [0, 1]."""
        for batch in self:
            yield batch["img"]


def anchor(plan: TrainingPlan, subset: Subset, args: Any, device: torch.device) -> Anchor:
    """Return what anchors the statistics of a training, measured on its calibration images.

    Args:
        plan: Names the FP32 checkpoint.
        subset: The training's data.
        args: Ultralytics' arguments, its seed among them.
        device: Where the training runs.
    """
    assert plan.reference is not None
    reference = load_pretrained(Path(plan.reference), plan.architecture, subset.class_names)
    images = CalibrationImages(
        subset, calibration_images(), vars(args), seed=args.seed, device=device
    )
    return Anchor(reference.to(device), images.pixels)


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
    device.

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
    step = 0
    for _ in range(epochs):
        for batch in images:
            loss = corrected.loss(batch, corrected(batch["img"]))[0].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            on_step(step, float(loss.detach()))
    changes = {
        name: QcChange(
            gamma_min=float(gamma.min()),
            gamma_max=float(gamma.max()),
            gamma_mean_abs_change=float((gamma - 1.0).abs().mean()),
            beta_max_abs=float(beta.abs().max()),
        )
        for name, c in corrections(corrected)
        for gamma, beta in [(c.gamma.detach(), c.beta.detach())]
    }
    corrected.to(next(model.buffers()).device)
    return fold_corrections(corrected, model), changes
