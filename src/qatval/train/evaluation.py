"""Evaluation, one way only, in training and after it: Ultralytics' mAP on padded square images."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import DEFAULT_CFG, ops
from ultralytics.utils.nms import non_max_suppression

from qatval.core.detectors import Detector, detector_of
from qatval.core.stability import PRIMARY_METRIC
from qatval.data.coco import Detection
from qatval.data.coco_protocol import MAX_DETECTIONS, interpolated_map
from qatval.data.subset import Split, Subset
from qatval.quant.fused import quantized_once
from qatval.train.dataset import SubsetDataset

CONFIDENCE = 0.001


@dataclass(frozen=True)
class Evaluation:
    """What one pass over the validation images gave.

    Attributes:
        metrics: Ultralytics' metrics by its names, unrounded, in [0, 1].
        losses: Mean validation loss per component, by Ultralytics' names; empty unless asked for.
        detections: In COCO's result format, boxes in pixels of the original image and as the
            model gave them, not clipped to it; empty unless asked for.
        interpolated: The primary metric of the same matches by COCO's interpolation; None unless
            detections were asked for.
    """

    metrics: dict[str, float]
    losses: dict[str, float]
    detections: list[Detection]
    interpolated: float | None = None

    @property
    def value(self) -> float:
        """The primary metric, mAP 50-95."""
        return self.metrics[PRIMARY_METRIC]


def evaluation_settings(imgsz: int, detector: Detector) -> dict[str, Any]:
    """Return what makes two evaluations comparable, for the record."""
    nms = {} if detector.nms_iou is None else {"nms_iou": detector.nms_iou}
    return {
        "imgsz": imgsz,
        "rect": False,
        "conf": CONFIDENCE,
        "max_det": MAX_DETECTIONS,
        "head": detector.head,
        **nms,
        "precision": "float32",
    }


class Evaluator:
    """Validation images and settings, ready to score models.

    Scoring leaves no trace: random state, training mode and gradients are as they were, so how
    often and how many models are scored cannot change a training.
    """

    def __init__(
        self,
        loader: Any,
        split: Split,
        *,
        args: Any,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        device: torch.device,
        save_dir: Path,
    ) -> None:
        """Prepare to score.

        Args:
            loader: Ultralytics data loader over the split's images.
            split: The images that are scored.
            args: Ultralytics' arguments; a copy is taken and fixed.
            class_names: Names by class index.
            category_ids: COCO category id by class index.
            device: Where models run.
            save_dir: Ultralytics' validator insists on a folder; nothing is written to it.
        """
        settings = copy(args)
        settings.conf, settings.max_det = CONFIDENCE, MAX_DETECTIONS
        settings.plots = settings.save_json = settings.save_txt = False
        settings.quantize = None
        self._args = settings
        self._loader = loader
        self._image_ids = dict(zip(loader.dataset.im_files, split.image_ids.tolist(), strict=True))
        self._category_ids = category_ids
        self._class_names = class_names
        self._device = device
        self._save_dir = save_dir

    def evaluate(self, model: nn.Module, *, keep_detections: bool = False) -> Evaluation:
        """Score one model; see `evaluate_together`."""
        (evaluation,) = self.evaluate_together([model], keep_detections=keep_detections)
        return evaluation

    def evaluate_together(
        self,
        models: Sequence[nn.Module],
        *,
        with_losses: bool = False,
        keep_detections: bool = False,
    ) -> list[Evaluation]:
        """Score models in float32, all in one pass over the images.

        In a multi-GPU training each rank scores its share of the images and rank 0 gets the
        results; the others get nothing but a NaN.

        Args:
            models: `DetectionModel` each, float or quantized.
            with_losses: Whether to compute the validation losses as well.
            keep_detections: Whether to return every detection.
        """
        with contextlib.ExitStack() as temporarily, torch.no_grad():
            for model in models:
                temporarily.enter_context(_unchanged(model))
                temporarily.enter_context(quantized_once(model))
            scores = [_Score(self._validator(model), model.eval(), with_losses) for model in models]
            for raw in self._loader:
                batch = scores[0].validator.preprocess(raw)
                for score in scores:
                    found = score.add(batch)
                    if keep_detections:
                        score.detections.extend(self._in_coco_format(found, batch))
            return [score.finish(len(self._loader), keep_detections) for score in scores]

    def _validator(self, model: Any) -> DetectionValidator:
        names = dict(enumerate(self._class_names))
        validator = DetectionValidator(self._loader, save_dir=self._save_dir, args=self._args)
        validator.device = self._device
        validator.data = {"names": names, "nc": len(names)}
        model.args = self._args if getattr(model, "args", None) is None else model.args
        validator.init_metrics(model)
        return validator

    def _in_coco_format(
        self, found: list[dict[str, torch.Tensor]], batch: dict[str, Any]
    ) -> Iterator[Detection]:
        for i, prediction in enumerate(found):
            boxes = prediction["bboxes"].clone()
            boxes[:, 2:] -= boxes[:, :2]
            ops.scale_boxes(
                batch["img"].shape[2:],
                boxes,
                batch["ori_shape"][i],
                ratio_pad=batch["ratio_pad"][i],
                xywh=True,
            )
            image_id = self._image_ids[batch["im_file"][i]]
            for box, score, label in zip(
                boxes.tolist(), prediction["conf"].tolist(), prediction["cls"].tolist(), strict=True
            ):
                yield {
                    "image_id": image_id,
                    "category_id": int(self._category_ids[int(label)]),
                    "bbox": [round(side, 3) for side in box],
                    "score": round(score, 6),
                }


class _Score:
    """One model's score while a pass over the images goes on."""

    def __init__(self, validator: DetectionValidator, model: Any, with_losses: bool) -> None:
        self.validator = validator
        self.detections: list[Detection] = []
        self._model = model
        self._with_losses = with_losses
        self._losses: dict[str, torch.Tensor] = {}

    def add(self, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """Count a batch in and return what the model found on it."""
        predictions = self._model(batch["img"])
        if self._with_losses:
            for name, loss in self._model.loss(batch, predictions)[1].items():
                self._losses[name] = self._losses.get(name, 0.0) + loss.detach()
        found = self._detections(predictions)
        self.validator.update_metrics(found, batch)
        return found

    def _detections(self, predictions: Any) -> list[dict[str, torch.Tensor]]:
        iou = detector_of(self._model.yaml["yaml_file"]).nms_iou
        if iou is None:
            found: list[dict[str, torch.Tensor]] = self.validator.postprocess(predictions)
            return found
        import torchvision  # noqa: F401  Ultralytics takes its NMS from the moment it is loaded

        kept = non_max_suppression(
            predictions,
            CONFIDENCE,
            iou,
            multi_label=True,
            max_det=MAX_DETECTIONS,
            max_time_img=math.inf,  # by default images go without an answer on a busy machine
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5]} for x in kept]

    def finish(self, batches: int, interpolate: bool) -> Evaluation:
        self.validator.gather_stats()
        means = {name: loss / batches for name, loss in self._losses.items()}
        if dist.is_initialized():
            for mean in means.values():
                dist.reduce(mean, dst=0, op=dist.ReduceOp.SUM)
                mean /= dist.get_world_size()
            if dist.get_rank() > 0:
                return Evaluation({PRIMARY_METRIC: math.nan}, {}, [])
        matches = {k: np.concatenate(v) for k, v in self.validator.metrics.stats.items()}
        stats = self.validator.get_stats()
        return Evaluation(
            metrics={k: float(v) for k, v in stats.items() if k != "fitness"},
            losses={k: float(v) for k, v in means.items()},
            detections=self.detections,
            interpolated=interpolated_map(
                matches["tp"], matches["conf"], matches["pred_cls"], matches["target_cls"]
            )
            if interpolate
            else None,
        )


def evaluator(
    subset: Subset, arguments: Mapping[str, Any], device: torch.device, save_dir: Path
) -> Evaluator:
    """Return what scores models on a subset's validation images outside of a training.

    Batches are as large as in training, so that the same weights give the same digits.

    Args:
        subset: The data.
        arguments: Ultralytics' arguments (imgsz, batch, workers, ...).
        device: Where models run.
        save_dir: An existing folder; nothing is written to it.
    """
    args = get_cfg(DEFAULT_CFG, {**arguments, "task": "detect", "mode": "train"})
    batch = 2 * args.batch
    dataset = SubsetDataset(
        subset.val, subset.class_names, imgsz=args.imgsz, batch=batch, augment=False, args=args
    )
    workers = args.workers if device.type == "cuda" else 0
    loader = build_dataloader(dataset, batch, workers, shuffle=False, device=device)
    return Evaluator(
        loader,
        subset.val,
        args=args,
        class_names=subset.class_names,
        category_ids=subset.category_ids,
        device=device,
        save_dir=save_dir,
    )


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """Leave every generator of random numbers as it was: Python's, numpy's and torch's.

    Ultralytics draws from them whenever it looks at an image, augmented or not.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    training = model.training
    with same_randomness():
        try:
            yield
        finally:
            model.train(training)
