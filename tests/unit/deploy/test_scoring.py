"""A model scores the same here and in a run's evaluation, whose answers are equal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.deploy.files import card
from torch import nn

from qatval.core.errors import QatvalError
from qatval.data.coco import CocoFiles
from qatval.data.coco_protocol import evaluate_coco
from qatval.data.shapes import draw_dataset
from qatval.data.subset import Subset, build_subset
from qatval.data.validation import ValidationSet, validation_set
from qatval.deploy.card import Card, Input, Output
from qatval.deploy.preprocessing import placed
from qatval.deploy.scoring import score
from qatval.train.evaluation import evaluator

SIDE, IMAGES, BATCH = 64, 7, 2


class Answering(nn.Module):
    """A model that answers what it was told to, image after image."""

    def __init__(self, answers: np.ndarray, architecture: str, names: tuple[str, ...]) -> None:
        super().__init__()
        self.answers, self.done = answers, 0
        self.names, self.yaml = dict(enumerate(names)), {"yaml_file": architecture}
        self.end2end = answers.shape[-1] == 6

    def forward(self, images: torch.Tensor) -> Any:
        own = self.answers[self.done : self.done + len(images)]
        self.done += len(images)
        return torch.from_numpy(own), {}


def answering(answers: np.ndarray, own: Card) -> Any:
    """Return the same as a runtime."""
    model = Answering(answers, own.architecture, own.class_names)

    def run(images: np.ndarray) -> np.ndarray:
        answer = model(torch.from_numpy(images))[0].numpy()
        missing = len(images) - len(answer)  # in the last batch
        return np.concatenate([answer, np.ones((missing, *answer.shape[1:]), np.float32)])

    return SimpleNamespace(card=own, run=run, name="test")


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Subset:
    root = tmp_path_factory.mktemp("data")
    draw_dataset(root / "shapes", train_images=2, val_images=IMAGES, size=96)
    return build_subset(
        root / "shapes", train_images=None, val_images=None, seed=0, cache_dir=root / "cache"
    )


@pytest.fixture(scope="module")
def validation(subset: Subset) -> ValidationSet:
    return validation_set(CocoFiles.of(subset.coco_root, "val"), None, subset.class_names)


def near_the_truth(subset: Subset) -> list[np.ndarray]:
    """Return boxes about the true ones with scores, left, top, right, bottom, score, class."""
    random = np.random.default_rng(0)
    found = []
    for row in range(IMAGES):
        own = slice(subset.val.offsets[row], subset.val.offsets[row + 1])
        height, width = subset.val.sizes[row].tolist()
        at = placed(height, width, SIDE)
        boxes = np.repeat(subset.val.boxes[own].astype(float), 6, axis=0)
        boxes *= [at.width, at.height] * 2
        boxes[:, :2] += [at.left, at.top]
        boxes += random.normal(0, 1.0, boxes.shape)
        corners = [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2]
        scores = random.random(len(boxes))
        classes = np.repeat(subset.val.classes[own], 6)
        classes = np.where(random.random(len(boxes)) < 0.2, 0, classes)
        rows = np.column_stack([*corners, scores, classes])
        found.append(rows[np.argsort(-scores)].astype(np.float32))
    return found


def final(subset: Subset) -> np.ndarray:
    answers = np.zeros((IMAGES, 80, 6), np.float32)
    for answer, rows in zip(answers, near_the_truth(subset), strict=True):
        answer[: len(rows)] = rows
    return answers


def one_to_many(subset: Subset) -> np.ndarray:
    answers = np.zeros((IMAGES, 4 + len(subset.class_names), 80), np.float32)
    for answer, rows in zip(answers, near_the_truth(subset), strict=True):
        each = np.arange(len(rows))
        answer[:2, each] = (rows[:, :2] + rows[:, 2:4]).T / 2
        answer[2:4, each] = (rows[:, 2:4] - rows[:, :2]).T
        answer[4 + rows[:, 5].astype(int), each] = rows[:, 4]
    return answers


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("head", ["one2one", "one2many"])
def test_it_scores_what_a_run_scores(
    subset: Subset, validation: ValidationSet, tmp_path: Path, head: str, batch: int | None
) -> None:
    answers = final(subset) if head == "one2one" else one_to_many(subset)
    architecture = "yolov10n.yaml" if head == "one2one" else "yolov8n.yaml"
    own = card(
        architecture=architecture,
        class_names=subset.class_names,
        input=Input(imgsz=SIDE, batch=batch),
        output=Output(
            head=head,
            nms_iou=None if head == "one2one" else 0.7,
            confidence=0.001,
            max_detections=300,
        ),
    )
    scored = score(answering(answers, own), validation)
    in_training = evaluator(
        subset, {"imgsz": SIDE, "batch": BATCH, "workers": 0}, torch.device("cpu"), tmp_path
    )
    model = Answering(answers, architecture, subset.class_names)
    expected = in_training.evaluate(model, keep_detections=True)
    coco = evaluate_coco(subset.val_annotations, expected.detections)
    assert 0.2 < scored.value < 0.9
    assert scored.value == expected.value
    assert scored.interpolated == expected.interpolated
    assert (scored.coco_map, scored.matched_map) == (coco.map, coco.matched_map)
    assert scored.detections == coco.detections


def test_classes_in_another_order_are_found_by_name(
    subset: Subset, validation: ValidationSet
) -> None:
    names, answers = subset.class_names, final(subset)
    told = Input(imgsz=SIDE, batch=1)
    usual = score(answering(answers, card(class_names=names, input=told)), validation)
    order = [*range(1, len(names)), 0]
    answers[..., 5] = np.argsort(order)[answers[..., 5].astype(int)]
    moved = card(class_names=tuple(names[row] for row in order), input=told)
    assert score(answering(answers, moved), validation) == usual


def test_a_file_of_other_classes_is_refused(subset: Subset, validation: ValidationSet) -> None:
    told = Input(imgsz=SIDE, batch=1)
    other = card(class_names=("cat", *subset.class_names[1:]), input=told)
    with pytest.raises(QatvalError, match="detects other classes"):
        score(answering(final(subset), other), validation)
    with pytest.raises(QatvalError, match=r"detects 2 classes, the dataset has \d"):
        score(answering(final(subset), card(input=told)), validation)


def test_a_model_that_finds_nothing_scores_zero(subset: Subset, validation: ValidationSet) -> None:
    own = card(class_names=subset.class_names, input=Input(imgsz=SIDE, batch=1))
    scored = score(answering(np.zeros((IMAGES, 5, 6), np.float32), own), validation)
    assert (scored.value, scored.coco_map, scored.detections) == (0.0, 0.0, [])
