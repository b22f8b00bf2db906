"""YOLO26: the heads and the loss of YOLOv10, but the sides of boxes as they are, without DFL."""

from collections.abc import Mapping

from qatval.core.detectors.yolo10 import Yolo10


class Yolo26(Yolo10):
    """Nothing stays in float: there is no layer that turns distributions into distances."""

    files = ("yolo26?.yaml",)
    exempt: Mapping[str, str] = {}


FAMILY = Yolo26()
