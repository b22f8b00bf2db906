"""Learning a quantization correction on a few training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Subset as ImageSubset
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from qatval.config import Correction
from qatval.data.subset import Subset
from qatval.quant.correction import attach_corrections, corrections, fold_corrections
from qatval.train.dataset import SubsetDataset


def calibration_images(train_images: int, wanted: int, seed: int) -> list[int]:
    """Draw the indices of the calibration images among a run's training images, in visit order."""
    rng = np.random.default_rng(seed)
    drawn: list[int] = rng.permutation(train_images)[:wanted].tolist()
    return drawn


def learn_correction(
    model: nn.Module,
    subset: Subset,
    correction: Correction,
    arguments: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, float], None],
) -> tuple[nn.Module, dict[str, dict[str, float]]]:
    """Learn gamma and beta with Adam on the task loss and fold them into the model.

    The one-to-many branch weighs 0.1 and the one-to-one branch 0.9, where the training's own
    schedule has ended. Images are not augmented. Arithmetic is float32 on every device.

    Args:
        model: Integer model to correct; it is left as it is.
        subset: The run's data; calibration images are drawn from its training split.
        correction: Epochs, learning rate, number of images.
        arguments: Ultralytics' arguments (imgsz, batch, workers, loss gains).
        seed: Seed of the drawing.
        device: Where the model runs.
        on_step: Called with the step, counted from 1, and its loss.

    Returns:
        The corrected integer model, and what changed per layer: ``gamma_min``, ``gamma_max``,
        ``gamma_mean_abs_change`` and ``beta_max_abs``.
    """
    args = get_cfg(DEFAULT_CFG, {**arguments, "task": "detect", "mode": "train"})
    dataset = SubsetDataset(
        subset.train,
        subset.class_names,
        imgsz=args.imgsz,
        batch=args.batch,
        augment=False,
        args=args,
    )
    drawn = calibration_images(len(subset.train), correction.images, seed)
    loader: DataLoader[Any] = DataLoader(
        ImageSubset(dataset, drawn),
        batch_size=args.batch,
        collate_fn=dataset.collate_fn,
        num_workers=args.workers if device.type == "cuda" else 0,
    )
    corrected: Any = attach_corrections(model).to(device).train()
    for module in corrected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics stay fixed, also where its layer is not quantized
    corrected.args = args
    criterion = corrected.init_criterion()
    criterion.o2m = criterion.final_o2m
    criterion.o2o = criterion.total - criterion.final_o2m
    corrected.criterion = criterion
    parameters = [p for _, c in corrections(corrected) for p in (c.gamma, c.beta)]
    optimizer = torch.optim.Adam(parameters, lr=correction.lr)
    step = 0
    for _ in range(correction.epochs):
        for batch in loader:
            moved = {
                k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
            }
            moved["img"] = moved["img"].float() / 255
            loss = corrected.loss(moved, corrected(moved["img"]))[0].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            on_step(step, float(loss.detach()))
    changes = {
        name: {
            "gamma_min": float(gamma.min()),
            "gamma_max": float(gamma.max()),
            "gamma_mean_abs_change": float((gamma - 1.0).abs().mean()),
            "beta_max_abs": float(beta.abs().max()),
        }
        for name, c in corrections(corrected)
        for gamma, beta in [(c.gamma.detach(), c.beta.detach())]
    }
    corrected.to(next(model.buffers()).device)
    return fold_corrections(corrected, model), changes
