"""Detections are paired one to one, and what stands at a cut says nothing."""

from __future__ import annotations

import numpy as np

from qatval.core.deployment import Agreement
from qatval.data.coco import Detection
from qatval.deploy.agreement import BOX, SCORE, agreement
from qatval.deploy.card import Output

TOLD = Output(head="one2one", nms_iou=None, confidence=0.001, max_detections=300)


def found(
    score: float, *, x: float = 10.0, width: float = 20.0, image: int = 1, category: int = 3
) -> Detection:
    bbox = [x, 10.0, width, 20.0]
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def noise(count: int) -> list[Detection]:
    random = np.random.default_rng(0)
    return [
        found(float(s), x=float(x), image=int(i))
        for s, x, i in zip(
            random.random(count),
            random.random(count) * 50,
            random.integers(0, 4, count),
            strict=True,
        )
    ]


def test_the_same_detections_agree_in_any_order() -> None:
    ours = noise(200)
    assert agreement(ours, ours[::-1], TOLD) == Agreement(200, 0, 0.0, 0.0)
    assert agreement([], [], TOLD) == Agreement(0, 0, 0.0, 0.0)


def test_the_largest_differences_are_those_of_sides_and_scores() -> None:
    ours = [found(0.9), found(0.5, x=80.0, image=2)]
    theirs = [found(0.895, x=9.75, width=20.75), found(0.5, x=80.0, image=2)]
    result = agreement(ours, theirs, TOLD)
    assert (result.detections, result.unmatched) == (2, 0)
    assert result.box == 0.5  # the right side: 30 and 30.5
    assert abs(result.score - 0.005) < 1e-9


def test_beyond_the_bounds_both_are_without_a_counterpart() -> None:
    for theirs in (
        found(0.9, x=10.0 + 1.01 * BOX),
        found(0.9 - 1.01 * SCORE),
        found(0.9, image=2),
        found(0.9, category=4),
    ):
        result = agreement([found(0.9)], [theirs], TOLD)
        assert (result.detections, result.unmatched) == (2, 2)
        assert (result.box, result.score) == (0.0, 0.0)


def test_a_detection_has_one_counterpart() -> None:
    result = agreement([found(0.9), found(0.9)], [found(0.9)], TOLD)
    assert (result.detections, result.unmatched) == (2, 1)


def test_the_closest_are_paired_first() -> None:
    ours = [found(0.9, x=10.0), found(0.9, x=10.6)]
    theirs = [found(0.9, x=10.6), found(0.9, x=10.0)]
    assert agreement(ours, theirs, TOLD).box == 0.0


def test_what_is_near_the_confidence_threshold_may_be_on_one_side_alone() -> None:
    ours = [found(0.9), found(TOLD.confidence + 0.9 * SCORE, x=70.0)]
    assert agreement(ours, [found(0.9)], TOLD).unmatched == 0
    assert agreement([found(0.9)], ours, TOLD).unmatched == 0
    ours[1] = found(TOLD.confidence + 1.1 * SCORE, x=70.0)
    assert agreement(ours, [found(0.9)], TOLD).unmatched == 1


def test_what_is_near_the_last_detection_that_is_kept_may_be_on_one_side_alone() -> None:
    few = Output(head="one2one", nms_iou=None, confidence=0.001, max_detections=2)
    ours = [found(0.9), found(0.5, x=40.0)]
    theirs = [found(0.9), found(0.502, x=90.0)]
    assert agreement(ours, theirs, few).unmatched == 0
    assert agreement(ours, theirs, TOLD).unmatched == 2
    theirs[1] = found(0.6, x=90.0)
    assert agreement(ours, theirs, few).unmatched == 1  # theirs, for which we had place
    other_image = [*theirs, found(0.4, image=2)]
    assert agreement(ours, other_image, few).unmatched == 2
