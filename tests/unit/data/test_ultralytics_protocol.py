"""The mAP of Ultralytics' own code, to the last digit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.engine.validator import BaseValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.metrics import Metric, ap_per_class, box_iou

from qatval.data.ultralytics_protocol import IOU_THRESHOLDS, hits, mean_average_precision

seeds = st.integers(0, 100_000)
some = st.integers(0, 40)


def theirs(tp: np.ndarray, conf: np.ndarray, pred: np.ndarray, target: np.ndarray) -> float:
    metric = Metric()
    metric.update(ap_per_class(tp, conf, pred, target)[2:])
    return float(metric.map)


def test_the_thresholds_are_torchs_to_the_bit() -> None:
    assert IOU_THRESHOLDS.tobytes() == torch.linspace(0.5, 0.95, 10).numpy().tobytes()
    validator = DetectionValidator(args={"mode": "val", "task": "detect"})
    assert IOU_THRESHOLDS.tobytes() == validator.iouv.numpy().tobytes()


@settings(deadline=None)
@given(seed=seeds, detections=some, objects=some, classes=st.integers(1, 3))
def test_detections_are_matched_as_ultralytics_matches_them(
    seed: int, detections: int, objects: int, classes: int
) -> None:
    random = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corners = random.integers(0, 4, (count, 2)) * 6 + random.normal(0, 0.7, (count, 2))
        return np.concatenate([corners, corners + random.uniform(7, 9, (count, 2))], 1).astype("f4")

    found, truth = boxes(detections), boxes(objects)
    found_classes = random.integers(0, classes, detections)
    truth_classes = random.integers(0, classes, objects)
    ours = hits(found, found_classes, truth, truth_classes)
    assert ours.shape == (detections, 10)
    if not detections or not objects:
        assert not ours.any()
        return
    expected = BaseValidator.match_predictions(
        SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10)),
        torch.from_numpy(found_classes),
        torch.from_numpy(truth_classes),
        box_iou(torch.from_numpy(truth), torch.from_numpy(found)),
    )
    np.testing.assert_array_equal(ours, expected.numpy())


@settings(deadline=None)
@given(
    seed=seeds,
    detections=st.integers(0, 300),
    objects=st.integers(0, 60),
    classes=st.integers(1, 6),
    levels=st.sampled_from([3, 10**6]),
)
def test_the_map_is_ultralytics_own(
    seed: int, detections: int, objects: int, classes: int, levels: int
) -> None:
    random = np.random.default_rng(seed)
    quality = random.random((detections, 1))
    tp = quality > np.linspace(0.3, 0.9, 10)
    conf = (random.integers(0, levels, detections) / levels).astype("f4")
    predicted = random.integers(0, classes, detections).astype("f4")
    truth = random.integers(0, classes, objects).astype("f4")
    expected = theirs(tp, conf, predicted, truth)
    assert mean_average_precision(tp, conf, predicted.astype(int), truth.astype(int)) == expected


def test_a_class_without_detections_counts_as_zero() -> None:
    right = np.ones((1, 10), np.bool_)
    score, label = np.array([0.9], np.float32), np.array([0])
    alone = mean_average_precision(right, score, label, np.array([0]))
    assert mean_average_precision(right, score, label, np.array([0, 1])) == alone / 2
    assert mean_average_precision(right, score, label, np.array([], int)) == 0.0
