"""YOLOv10: a one-to-many head to learn by, and a one-to-one head that answers without NMS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qatval.core.detectors import Detector


class Yolo10(Detector):
    """Two heads over the same features, the sides of boxes as distributions (DFL)."""

    files = ("yolov10?.yaml",)
    boundary = ("model.0.conv", "model.*.cv[23].*.2", "model.*.one2one_cv[23].*.2")
    exempt: Mapping[str, str] = {
        "model.*.dfl.conv": "a frozen arange(16): signed int4 cannot hold 0..15"
    }
    class_layers = "model.*cv3.[0-9].2"
    head = "one2one"
    nms_iou = None

    def prepare(self, model: Any) -> None:
        """Choose the one-to-one head."""
        model.end2end = True

    def settle(self, criterion: Any) -> None:
        """Weigh the one-to-many head 0.1 and the one-to-one head 0.9, as their schedule ends."""
        criterion.o2m = criterion.final_o2m
        criterion.o2o = criterion.total - criterion.final_o2m

    def heads(self, predictions: Any) -> Sequence[Mapping[str, Any]]:
        """Return the outputs of the one-to-many head and of the one-to-one head."""
        return predictions["one2many"], predictions["one2one"]


FAMILY = Yolo10()
