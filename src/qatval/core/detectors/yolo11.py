"""YOLO11 and YOLOv8: one head, whose boxes NMS thins out, and a loss without a schedule.

Their mAP is that after NMS: what rounding does to a score can also change which box survives.
"""

from qatval.core.detectors import Detector
from qatval.core.detectors.yolo10 import Yolo10


class Yolo11(Detector):
    """The sides of boxes are distributions (DFL), as in YOLOv10."""

    files = ("yolo11?.yaml", "yolov8?.yaml")
    boundary = ("model.0.conv", "model.*.cv[23].*.2")
    exempt = Yolo10.exempt
    class_layers = Yolo10.class_layers
    head = "one2many"
    nms_iou = 0.7  # Ultralytics' own in validation


FAMILY = Yolo11()
