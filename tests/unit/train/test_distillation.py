"""The teacher: no distance from itself, gradients towards it, the task's loss in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Laplace, kl_divergence
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from qatval.quant.batchnorm import reestimate
from qatval.train.distillation import DistilledCriterion, distance
from qatval.train.models import build_model

NAMES = ("a", "b", "c")


def answers(seed: int, images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "scores": torch.randn(images, 3, 21, generator=generator) * 3,
        "boxes": torch.randn(images, 64, 21, generator=generator),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_distance_is_positive_and_zero_from_oneself(seed: int) -> None:
    one, other = answers(seed), answers(seed + 1)
    assert float(distance(one, one)) == pytest.approx(0.0, abs=1e-3)
    assert float(distance(other, one)) > 0.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_without_bins_a_side_is_the_middle_of_a_laplace_distribution(seed: int) -> None:
    """Oracle: torch's own divergence of two such distributions, one stride wide."""
    student, teacher = answers(seed), answers(seed + 1)
    student |= {"boxes": student["boxes"][:, :4], "scores": teacher["scores"]}
    teacher |= {"boxes": teacher["boxes"][:, :4]}
    assert float(distance(teacher, teacher)) == pytest.approx(0.0, abs=1e-3)
    found, wanted = (Laplace(one["boxes"].double(), 1.0) for one in (student, teacher))
    weights = teacher["scores"].double().sigmoid().amax(1)
    total = (kl_divergence(wanted, found).mean(1) * weights).sum() / 2
    assert float(distance(student, teacher)) == pytest.approx(float(total), rel=1e-3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_distance_is_what_its_docstring_says(seed: int) -> None:
    """Oracle: the definition, anchor by anchor, in float64."""
    student, teacher = answers(seed), answers(seed + 1)
    total = 0.0
    for image in range(2):
        for anchor in range(21):
            p = teacher["scores"][image, :, anchor].double().sigmoid()
            q = student["scores"][image, :, anchor].double().sigmoid()
            total += float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())
            wanted = teacher["boxes"][image, :, anchor].double().view(4, 16).softmax(1)
            found = student["boxes"][image, :, anchor].double().view(4, 16).softmax(1)
            sides = (wanted * (wanted / found).log()).sum(1)
            total += float(sides.mean() * p.max())
    assert float(distance(student, teacher)) == pytest.approx(total / 2, rel=1e-3)


def a_batch() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "img": torch.rand(2, 3, 64, 64),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]]),
        "batch_idx": torch.tensor([0.0, 1.0]),
    }


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    found: Any = build_model("yolov10n.yaml", NAMES)
    found.args = get_cfg(DEFAULT_CFG, {"epochs": 2})
    return found


def test_in_training_the_teacher_speaks_and_in_evaluation_the_task(model: Any) -> None:
    torch.manual_seed(1)
    teacher = build_model("yolov10n.yaml", NAMES)
    batch = a_batch()
    alone = model.init_criterion()
    model.criterion = DistilledCriterion(model, teacher, weight=1.0, task=0.0)
    model.train()
    loss, _ = model.loss(batch)
    assert len(loss) == 4
    assert not loss[:3].any()
    assert loss[3] > 0
    loss.sum().backward()
    moved = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("one2one_cv3" in name for name in moved)
    assert all(p.grad is None for p in teacher.parameters())
    model.eval()
    with torch.no_grad():
        predictions = model(batch["img"])
        recorded, _ = model.criterion(predictions, batch)
        expected, _ = alone(predictions, batch)
    assert torch.equal(recorded, expected)


def test_a_model_is_not_taught_by_what_it_is(model: Any) -> None:
    """FP32 that holds its statistics is its own teacher: there is nothing to learn."""
    batch = a_batch()
    # With the statistics of a new model every image looks the same to it.
    model = reestimate(model, [batch["img"]])
    torch.manual_seed(1)
    other = reestimate(build_model("yolov10n.yaml", NAMES), [batch["img"]])

    def loss(teacher: Any) -> float:
        model.criterion = DistilledCriterion(model, teacher, weight=1.0, task=0.0)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        total, _ = model.loss(batch)
        return float(total.detach().sum())

    assert loss(copy.deepcopy(model)) == pytest.approx(0.0, abs=1e-3)
    assert loss(other) > 100.0
