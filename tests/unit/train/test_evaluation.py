"""What is recorded of an evaluation, and NMS where a family's head needs it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from qatval.core.detectors import detector_of
from qatval.train.evaluation import _Score, evaluation_settings


def test_what_makes_two_evaluations_comparable() -> None:
    end_to_end = {
        "imgsz": 64,
        "rect": False,
        "conf": 0.001,
        "max_det": 300,
        "head": "one2one",
        "precision": "float32",
    }
    for architecture in ("yolov10n.yaml", "yolo26n.yaml"):
        settings = evaluation_settings(64, detector_of(architecture))
        assert list(settings.items()) == list(end_to_end.items())
    with_nms = end_to_end | {"head": "one2many", "nms_iou": 0.7}
    for architecture in ("yolo11n.yaml", "yolov8n.yaml"):
        assert evaluation_settings(64, detector_of(architecture)) == with_nms


def test_nms_leaves_the_best_box_of_each_class_however_long_it_takes() -> None:
    # x, y, width, height of the center and the scores of two classes, one column per box. The first
    # two boxes overlap by 0.8, the last one stands alone and may be either class.
    columns = [
        [20.0, 20.0, 10.0, 10.0, 0.9, 0.0],
        [20.0, 21.0, 10.0, 8.0, 0.6, 0.0],
        [50.0, 50.0, 10.0, 10.0, 0.3, 0.4],
    ]
    images = 40
    predictions = torch.tensor(columns).T.repeat(images, 1, 1)
    model = SimpleNamespace(yaml={"yaml_file": "yolov8n.yaml"})
    score = _Score(SimpleNamespace(), model, with_losses=False)  # type: ignore[arg-type]
    found = score._detections((predictions, {}))
    assert len(found) == images
    for image in found:
        torch.testing.assert_close(image["conf"], torch.tensor([0.9, 0.4, 0.3]))
        assert image["cls"].tolist() == [0.0, 1.0, 0.0]
        assert image["bboxes"].tolist() == [[15, 15, 25, 25], [45, 45, 55, 55], [45, 45, 55, 55]]
