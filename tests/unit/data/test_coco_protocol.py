"""The wrapper around pycocotools: perfect, missed, wrong and empty predictions, and resamples."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from qatval.data import coco_protocol
from qatval.data.coco_protocol import evaluate_coco, interpolated_map, resampled_map

BOXES = {1: [[10, 10, 30, 30], [50, 50, 20, 40]], 2: [[5, 60, 40, 30]], 3: []}


def truth(path: Path, crowd: list[int] | None = None) -> Path:
    """Three 100 px images, two categories; optionally a crowd region in image 3."""
    annotations: list[dict[str, Any]] = [
        {"image_id": image, "category_id": 1 + 6 * (i % 2), "bbox": box, "iscrowd": 0}
        for image, boxes in BOXES.items()
        for i, box in enumerate(boxes)
    ]
    if crowd:
        annotations.append({"image_id": 3, "category_id": 1, "bbox": crowd, "iscrowd": 1})
    document = {
        "images": [{"id": i, "width": 100, "height": 100, "file_name": f"{i}.jpg"} for i in BOXES],
        "annotations": [
            {**a, "id": i, "area": a["bbox"][2] * a["bbox"][3]}
            for i, a in enumerate(annotations, start=1)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}],
    }
    path.write_text(json.dumps(document))
    return path


def perfect(score: float = 0.9) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": 1 + 6 * (i % 2), "bbox": box, "score": score}
        for image, boxes in BOXES.items()
        for i, box in enumerate(boxes)
    ]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return truth(tmp_path / "val.json")


def test_perfect(annotations: Path) -> None:
    result = evaluate_coco(annotations, perfect())
    assert result.map == pytest.approx(1.0)
    assert result.map50 == result.matched_map == pytest.approx(1.0)


def test_empty(annotations: Path) -> None:
    result = evaluate_coco(annotations, [])
    assert (result.map, result.map50, result.matched_map) == (0.0, 0.0, 0.0)
    assert not result.bootstrap.any()


def test_missed(annotations: Path) -> None:
    """One of category 1's two objects is missed: its recall ends at a half."""
    result = evaluate_coco(annotations, perfect()[:2])
    assert result.map == pytest.approx((51 / 101 + 1.0) / 2)


def test_false_positive_before_the_hits(annotations: Path) -> None:
    wrong = {"image_id": 3, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 0.99}
    result = evaluate_coco(annotations, [*perfect(), wrong])
    assert result.map == pytest.approx((1.0 + 0.5) / 2)


def test_crowds_count_in_one_protocol_only(tmp_path: Path) -> None:
    crowded = truth(tmp_path / "crowd.json", crowd=[0, 0, 100, 100])
    inside = {"image_id": 3, "category_id": 1, "bbox": [20, 20, 30, 30], "score": 0.99}
    result = evaluate_coco(crowded, [*perfect(), inside])
    assert result.map == pytest.approx(1.0)  # ignored, as COCO wants
    assert result.matched_map < 0.9  # a false positive, as Ultralytics counts it


def test_boxes_are_clipped_in_one_protocol_only(annotations: Path) -> None:
    beyond = perfect()
    beyond[2] = {**beyond[2], "bbox": [-30, 60, 75, 30]}  # clipped: 0..45 instead of 5..45
    result = evaluate_coco(annotations, beyond)
    assert result.detections[2]["bbox"] == [0.0, 60, 45.0, 30.0]
    assert result.map > result.matched_map


def noisy(seed: int, images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Random objects, and detections of which some hit them."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 4)):
            box = [*rng.uniform(0, 50, 2), *rng.uniform(10, 40, 2)]
            category = int(rng.integers(1, 4))
            objects.append({"image_id": image, "category_id": category, "bbox": box})
            shifted = [side + float(rng.normal(0, 3)) for side in box]
            detections.append({"image_id": image, "category_id": category, "bbox": shifted})
        for _ in range(rng.integers(0, 3)):
            box = [*rng.uniform(0, 50, 2), *rng.uniform(10, 40, 2)]
            detections.append(
                {"image_id": image, "category_id": int(rng.integers(1, 4)), "bbox": box}
            )
    document = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(1, images + 1)],
        "annotations": [
            {**o, "id": i, "iscrowd": 0, "area": o["bbox"][2] * o["bbox"][3]}
            for i, o in enumerate(objects, start=1)
        ],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
    }
    scored = [{**d, "score": float(rng.uniform())} for d in detections]
    return document, scored


def evaluated(document: dict[str, Any], detections: list[dict[str, Any]]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = document
        dataset.createIndex()
        return coco_protocol._evaluate(dataset, detections, max_detections=300)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_resample_equals_pycocotools_on_copied_images(seed: int) -> None:
    """Oracle: write drawn images as so many separate images and let pycocotools do it all."""
    document, detections = noisy(seed, images=8)
    draw = np.random.default_rng(seed + 1).integers(8, size=8)
    copies: dict[str, Any] = {**document, "images": [], "annotations": []}
    copied_detections = []
    for new, old in enumerate(draw, start=1):
        copies["images"].append({"id": new, "width": 100, "height": 100})
        for a in document["annotations"]:
            if a["image_id"] == old + 1:
                copies["annotations"].append(
                    {**a, "image_id": new, "id": len(copies["annotations"]) + 1}
                )
        copied_detections += [
            {**d, "image_id": new} for d in detections if d["image_id"] == old + 1
        ]
    weights = np.bincount(draw, minlength=8)[None]
    expected = coco_protocol._average_precision(evaluated(copies, copied_detections))
    # Copies of a detection tie in score; pycocotools then orders them by image, which the
    # weights cannot. Both orders are the same curve up to single tied steps.
    found = resampled_map(evaluated(document, detections), weights)
    assert found[0] == pytest.approx(expected, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weights_of_one_give_pycocotools_own_value(seed: int) -> None:
    document, detections = noisy(seed, images=10)
    evaluation = evaluated(document, detections)
    found = resampled_map(evaluation, np.ones((1, 10), dtype=np.int64))
    assert found[0] == pytest.approx(coco_protocol._average_precision(evaluation), abs=1e-12)


def test_resamples_are_paired_between_models(annotations: Path) -> None:
    one = evaluate_coco(annotations, perfect(), seed=3).bootstrap
    other = evaluate_coco(annotations, perfect(0.5), seed=3).bootstrap
    assert np.array_equal(one, other)
    assert len(one) == coco_protocol.RESAMPLES


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_matches_interpolate_to_pycocotools_own_value(seed: int) -> None:
    document, detections = noisy(seed, images=10)
    evaluation = evaluated(document, detections)
    hits, scores, predicted, objects = [], [], [], []
    for label, (found, _, hit) in enumerate(coco_protocol._matches_by_category(evaluation)):
        objects += [label] * int(found.sum())
        hits.append(hit.T)
        predicted += [label] * hit.shape[1]
    for first in range(0, len(evaluation.evalImgs), 10):
        matches = evaluation.evalImgs[first : first + 10]
        scores += sorted((s for m in matches if m for s in m["dtScores"]), reverse=True)
    found_map = interpolated_map(
        np.concatenate(hits), np.array(scores), np.array(predicted), np.array(objects)
    )
    assert found_map == pytest.approx(coco_protocol._average_precision(evaluation), abs=1e-12)


def test_without_objects_there_is_no_precision() -> None:
    none = np.empty(0)
    assert interpolated_map(np.empty((0, 10), bool), none, none, none) == 0.0
