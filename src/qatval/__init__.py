"""Validation of stabilisation methods for 4-bit quantization-aware training of YOLOv10."""

__version__ = "0.1.0"
