"""Validate stabilisation methods for 4-bit quantization-aware training of small YOLO detectors."""

__version__ = "0.1.0"
