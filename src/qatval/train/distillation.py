"""The FP32 checkpoint as a teacher: what the student is trained to answer in the place of labels.

With few images a detection loss has little to say, and what it says is noisy: of a few thousand
anchors a handful carry an object. A teacher says something about every anchor. What it knows is
what the quantized model had before it was rounded.

Chosen here (the papers that this project follows do not distill): the class scores' binary cross
entropy to the teacher's probabilities, less that of the teacher with itself, summed over anchors
and classes; and the Kullback-Leibler divergence of the distributions of the four box sides, summed
over anchors, each weighted by the teacher's largest class probability there. Where a head answers
sides and not their distributions, either is taken for the middle of a Laplace distribution one
stride wide, as wide as a bin. All heads count alike. Like the detection loss the sum is one over
the images of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qatval.core.detectors import detector_of
from qatval.train.models import load_pretrained
from qatval.train.trajectory import TrainingPlan


def teach(model: Any, plan: TrainingPlan, class_names: Sequence[str]) -> None:
    """Give a model the teacher that a plan names.

    To be called when copies of the model, such as its average, have been made: they would be given
    a teacher each.
    """
    assert plan.teacher is not None
    assert plan.reference is not None
    teacher = load_pretrained(Path(plan.reference), plan.architecture, class_names)
    teacher.to(next(model.parameters()).device)
    model.criterion = DistilledCriterion(
        model, teacher, weight=plan.teacher.weight, task=plan.teacher.task
    )


class DistilledCriterion:
    """Ultralytics' criterion of a model with a teacher beside it.

    While the model trains, the loss is ``task * detection loss + weight * distillation loss``; in
    evaluation, where losses are only recorded, the detection loss alone.
    """

    def __init__(self, model: Any, teacher: nn.Module, *, weight: float, task: float) -> None:
        """Put a teacher beside a model.

        Args:
            model: Detection model to train; its own criterion is made here.
            teacher: Detection model of the same heads, on the same device; it is frozen.
            weight: Of the distillation loss.
            task: Of the detection loss.
        """
        self.base: Any = model.init_criterion()
        self.model = model
        self.teacher: Any = teacher.eval().requires_grad_(False)
        self.weight, self.task = weight, task

    def __call__(self, predictions: Any, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return the loss, one entry per term, and what Ultralytics records of it."""
        loss, items = self.base(predictions, batch)
        if not self.model.training:
            return loss, items
        with torch.no_grad():
            wanted = self.teacher(batch["img"])[1]
        images = len(batch["img"])
        heads = detector_of(self.model.yaml["yaml_file"]).heads
        pairs = zip(heads(predictions), heads(wanted), strict=True)
        found = torch.stack([distance(student, teacher) for student, teacher in pairs]).sum()
        return torch.cat([self.task * loss, (self.weight * images * found)[None]]), items

    def update(self) -> None:
        """Go on to the next epoch's weights of the heads, as Ultralytics' trainer asks for."""
        if hasattr(self.base, "update"):
            self.base.update()


def distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Return how far a head's answers are from the teacher's, per image; 0 where they are equal.

    Args:
        student, teacher: Outputs of a head, as `Detector.heads` describes them.
    """
    logits, sides = teacher["scores"].float(), teacher["boxes"].float()
    images, _, anchors = sides.shape
    wanted = logits.sigmoid()
    scores = F.binary_cross_entropy_with_logits(student["scores"].float(), wanted, reduction="sum")
    scores = scores - F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    bins = (images, 4, sides.shape[1] // 4, anchors)
    found, expected = student["boxes"].float().view(bins), sides.view(bins)
    if bins[2] == 1:
        gap = (found - expected).abs()
        divergence = gap + torch.expm1(-gap)
    else:
        divergence = F.kl_div(
            found.log_softmax(2), expected.log_softmax(2), log_target=True, reduction="none"
        )
    boxes = divergence.sum(2).mean(1).mul(wanted.amax(1)).sum()
    return (scores + boxes) / images
