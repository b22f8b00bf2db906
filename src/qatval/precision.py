"""Quantizations as one readable string, which names groups and is a condition of references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qatval.runs import FP32

_USUAL = ("per-channel", "learned", "from max shifted")


def precision(quantization: Mapping[str, Any]) -> str:
    """Write a summary's quantization, e.g. ``"w4a16 per-channel learned from max shifted"``.

    After ``from`` stands the start: where scales began, what became of BatchNorm statistics. What
    an older tool did not record is not written, and neither is what no preset changes. A float
    control is ``"fp32"``.
    """
    mode = str(quantization["mode"])
    if mode == FP32:
        return mode
    said = [mode, quantization.get("scale"), quantization.get("scaling")]
    if quantization.get("narrow_range") is False:
        said.append("full range")
    if (without := quantization.get("scale_without_batchnorm")) not in (None, "per-channel"):
        said.append(f"{without} head")
    if isinstance(bits := quantization.get("boundary_bit_width"), int):
        said.append(f"boundary {bits} bit")
    if isinstance(start := quantization.get("start"), Mapping):
        said.append(f"from {start['scale']} {start['statistics']}")
    return " ".join(str(part) for part in said if part is not None)


def brief(precise: str) -> str:
    """Leave out of such a string what is usual: nothing is left of the default preset's."""
    left = f"{precise} "
    for usual in _USUAL:
        left = left.replace(f"{usual} ", "")
    left = left.strip()
    return "" if left == "w4a16" else left


def in_words(quantization: Mapping[str, Any]) -> str:
    """Say in words what is quantized, e.g. ``"4-bit weights, activations in float"``."""
    if quantization["mode"] == FP32:
        return "weights and activations in float"
    activations = quantization.get("activation_bit_width")
    also = "activations in float" if activations is None else f"{activations}-bit activations"
    boundary = quantization.get("boundary_bit_width")
    ends = f", first and last layers at {boundary} bit" if isinstance(boundary, int) else ""
    return f"{quantization['weight_bit_width']}-bit weights, {also}{ends}"
