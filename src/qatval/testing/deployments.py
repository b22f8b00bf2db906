"""Build what a run records of its exported file, without a run: for tests of what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def build_deployment(
    value: float = 0.64,
    *,
    weights: str = "int4",
    size: int = 1_284_000,
    runtimes: Sequence[str] = ("onnxruntime", "openvino"),
    executed: Mapping[str, int] | None = None,
    median_ms: float = 8.12,
) -> dict[str, Any]:
    """Build what a run records of its exported file, to be its summary's ``deployment``.

    Args:
        value: mAP 50-95 of the file, the same in every runtime.
        weights, size: How quantized weights lie in it, and its bytes.
        runtimes: In which it was measured.
        executed: Precision -> how many convolutions they computed in it, of the run's own file.
        median_ms: Latency of the run's own file.
    """
    computed, in_float = executed or {"float32": 94}, {"float32": 94}
    own = [_in_runtime(name, value, median_ms, computed) for name in runtimes]
    agreement = {"detections": 3187, "unmatched": 2, "box": 0.0371, "score": 0.00012}
    return {
        "opset": 21,
        "exported": {
            "file": "exported/model.onnx",
            "bytes": size,
            "weights": weights,
            "runtimes": [{**runtime, "agreement": agreement} for runtime in own],
        },
        "fp32": {
            "file": None,
            "bytes": 9_573_000,
            "weights": "float",
            "runtimes": [_in_runtime(name, 0.682, 8.05, in_float) for name in runtimes],
        },
    }


def _in_runtime(
    name: str, value: float, median_ms: float, executed: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "name": name,
        "version": {"onnxruntime": "1.32.0", "openvino": "2026.4.1"}[name],
        "value": value,
        "coco_map": value - 0.0013,
        "latency": {
            "median_ms": median_ms,
            "low_ms": median_ms - 0.09,
            "high_ms": median_ms + 0.21,
            "calls": 50,
            "threads": 1,
        },
        "resident_mb": {"onnxruntime": 118, "openvino": 164}[name],
        "executed": dict(executed),
    }
