"""Detections are those that Ultralytics reads out of the same answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401  Ultralytics takes its NMS from the moment it is loaded
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.utils import ops
from ultralytics.utils.nms import non_max_suppression

from qatval.core.errors import QatvalError
from qatval.deploy.card import Output
from qatval.deploy.postprocessing import Found, found_in, in_image
from qatval.deploy.preprocessing import placed

END_TO_END = Output(head="one2one", nms_iou=None, confidence=0.25, max_detections=3)


def with_nms(most: int = 300, confidence: float = 0.001) -> Output:
    return Output(head="one2many", nms_iou=0.7, confidence=confidence, max_detections=most)


def columns(seed: int, boxes: int, classes: int, *, levels: int) -> np.ndarray:
    """Return an answer of overlapping boxes, with equal scores where ``levels`` are few."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 6, (2, boxes)) * 8 + random.normal(0, 1, (2, boxes))
    sides = random.uniform(8, 14, (2, boxes))
    scores = random.integers(0, levels, (classes, boxes)) / levels
    return np.concatenate([centres, sides, scores]).astype(np.float32)[None]


def rows(found: Found) -> np.ndarray:
    return np.column_stack([found.boxes, found.scores, found.classes.astype(np.float32)])


def test_what_a_head_without_nms_answers_is_cut_at_the_threshold_and_the_number() -> None:
    answer = np.array(
        [[[0, 0, 9, 9, s, 1] for s in (0.9, 0.8, 0.5, 0.4, 0.25)], [[0, 0, 9, 9, 0.1, 0]] * 5],
        np.float32,
    )
    first, second = found_in(answer, END_TO_END, 2)
    assert first.scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert first.classes.tolist() == [1, 1, 1]
    assert len(second.scores) == 0
    wide = Output(head="one2one", nms_iou=None, confidence=0.25, max_detections=300)
    assert len(found_in(answer, wide, 2)[0].scores) == 4  # 0.25 is not above it


@pytest.mark.parametrize("told", [END_TO_END, with_nms()], ids=["final", "nms"])
def test_an_answer_of_another_kind_is_refused(told: Output) -> None:
    for shape in ((1, 9, 9), (1, 7, 300)):
        with pytest.raises(QatvalError, match="is not what its file says of it"):
            found_in(np.zeros(shape, np.float32), told, 2)


@pytest.mark.parametrize("class_", [2.0, -1.0, np.nan, np.inf, 1e30])
def test_a_class_that_the_file_does_not_name_is_refused(class_: float) -> None:
    answer = np.array([[[0, 0, 9, 9, 0.9, class_]]], np.float32)
    with pytest.raises(QatvalError, match="a class beyond the 2"):
        found_in(answer, END_TO_END, 2)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    boxes=st.integers(0, 120),
    classes=st.integers(1, 4),
    levels=st.sampled_from([4, 1000]),
    most=st.sampled_from([5, 300]),
    confidence=st.sampled_from([0.001, 0.25]),
)
def test_nms_keeps_what_torchvisions_keeps(
    seed: int, boxes: int, classes: int, levels: int, most: int, confidence: float
) -> None:
    # Of six columns Ultralytics would take the boxes for final ones.
    answer = columns(seed, boxes if boxes != 6 else 7, classes, levels=levels)
    theirs = non_max_suppression(
        torch.from_numpy(answer.copy()),
        confidence,
        0.7,
        multi_label=True,
        max_det=most,
        max_time_img=math.inf,
    )[0].numpy()
    np.testing.assert_array_equal(
        rows(found_in(answer, with_nms(most, confidence), classes)[0]), theirs
    )


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 425), (50, 64), (1, 200)])
def test_boxes_go_back_to_the_image_as_ultralytics_scales_them(height: int, width: int) -> None:
    side = 64
    at = placed(height, width, side)
    corners = np.random.default_rng(0).uniform(-5, 70, (20, 4)).astype(np.float32)
    theirs = torch.from_numpy(corners.copy())
    theirs[:, 2:] -= theirs[:, :2]
    ops.scale_boxes(
        (side, side),
        theirs,
        (height, width),
        ratio_pad=(at.gains, (at.left, at.top)),
        xywh=True,
    )
    found = Found(corners, np.ones(20, np.float32), np.zeros(20, np.int64))
    np.testing.assert_array_equal(in_image(found, at), theirs.numpy())
    np.testing.assert_array_equal(found.boxes, corners)
