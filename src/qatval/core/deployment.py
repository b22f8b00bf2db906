"""What is known of a run's exported file: how large, how fast, how exact, in which runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from qatval.core.measurements import Count, Magnitude, Number, Record

WeightStorage = Literal["int4", "int8", "float"]
RuntimeName = Literal["onnxruntime", "openvino"]

RUNTIME_LABELS: Mapping[RuntimeName, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
"""What they are called in reports."""


class Latency(Record, frozen=True):
    """Wall time of one image through the runtime, without reading it or drawing on it.

    Attributes:
        median_ms: Of all timed calls.
        low_ms, high_ms: Their quartiles.
        calls: How many were timed, after others that were not.
        threads: That the runtime was given.
    """

    median_ms: Magnitude
    low_ms: Magnitude
    high_ms: Magnitude
    calls: Number
    threads: Number


class Agreement(Record, frozen=True):
    """How far the file's detections lie from the run's own, on the same images.

    Attributes:
        detections: That were compared.
        unmatched: That have no counterpart of their class within the bounds.
        box: Largest difference of a side, in pixels of the image.
        score: Largest difference of a score.
    """

    detections: Count
    unmatched: Count
    box: Magnitude
    score: Magnitude


class RuntimeRecord(Record, frozen=True, kw_only=True):
    """An exported file in one runtime.

    Attributes:
        name, version: Of the runtime.
        value: mAP 50-95 of the file on the run's validation images, in [0, 1].
        coco_map: The same by COCO's protocol.
        agreement: With the run's own detections, None for what is not the run's own model.
        latency: At one image a call.
        resident_mb: The most memory in MiB that a process took which loaded the file and ran it,
            Python and the runtime's own code included; None where the system does not tell.
        executed: Precision of the input, and of the weights where theirs is another -> how many
            convolutions the runtime computed in it.
    """

    name: RuntimeName
    version: str
    value: float
    coco_map: float
    agreement: Agreement | None = None
    latency: Latency
    resident_mb: Count | None
    executed: dict[str, Count]


class ExportedFile(Record, frozen=True, kw_only=True):
    """A file and what became of it in each runtime.

    Attributes:
        file: Its path relative to the run root; None for a file that was not kept.
        bytes: Its size.
        weights: How quantized weights lie in it.
        runtimes: One or more.
    """

    file: str | None
    bytes: Number
    weights: WeightStorage
    runtimes: tuple[RuntimeRecord, ...]


class DeploymentRecord(Record, frozen=True):
    """What a run exported, beside its FP32 checkpoint exported and measured alike.

    Attributes:
        opset: Of the graph.
        exported: The run's own.
        fp32: The checkpoint that it started from.
    """

    opset: Number
    exported: ExportedFile
    fp32: ExportedFile
