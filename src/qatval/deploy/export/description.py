"""What is written into an exported file beside its graph: the card, and Ultralytics' own keys."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from torch import Tensor

from qatval.core.deployment import WeightStorage
from qatval.core.detectors import detector_of
from qatval.core.summary import RunSummary
from qatval.data.coco_protocol import MAX_DETECTIONS
from qatval.deploy.card import KEY, Card, Input, Origin, Output
from qatval.deploy.export.tracing import with_one_head
from qatval.quant.integer import integer_layers
from qatval.train.evaluation import CONFIDENCE


def card_of(
    summary: RunSummary,
    model: Any,
    *,
    weights_sha256: str,
    summary_sha256: str | None = None,
    storage: WeightStorage = "int4",
    imgsz: int | None = None,
    batch: int | None = 1,
) -> Card:
    """Return the card of a model that a run delivered.

    Args:
        summary: The run's, finished or not.
        model: As `qatval.train.models.load_checkpoint` returns it.
        weights_sha256: Of the file that it was loaded from.
        summary_sha256: Of ``run_summary.json``, None where the run is not finished.
        storage: How quantized weights will lie in the file; where there are none it is float.
        imgsz: Side of the input in pixels, None for the run's.
        batch: Images of one call, None for any number.
    """
    architecture = model.yaml["yaml_file"]
    detector = detector_of(architecture)
    layers = integer_layers(with_one_head(model))
    coverage = summary.quantization.coverage
    recorded = {layer.name: layer.bits for layer in coverage.layers} if coverage else {}
    inputs = [layer.input_range for layer in layers.values() if layer.input_range is not None]
    requested = summary.dataset.requested
    side = imgsz or summary.model.imgsz
    return Card(
        version=1,
        architecture=architecture,
        class_names=tuple(model.names.values()),
        input=Input(imgsz=side, batch=batch),
        output=Output(
            head=detector.head,
            nms_iou=detector.nms_iou,
            confidence=CONFIDENCE,
            max_detections=MAX_DETECTIONS,
        ),
        storage=storage if layers else "float",
        weight_bits=_counted(
            [recorded.get(name) or _bits(layer.codes) for name, layer in layers.items()]
        ),
        activation_bits=_counted([_bits(codes) for codes in inputs]),
        origin=Origin(
            run_id=summary.run_id,
            method=summary.method.variant,
            summary_sha256=summary_sha256,
            weights_sha256=weights_sha256,
            value=summary.metrics.final_value if side == summary.model.imgsz else None,
            val_images=requested.val_images if requested else summary.dataset.val_images,
            dataset=summary.dataset.identity,
        ),
    )


def metadata_of(card: Card, stride: int) -> dict[str, str]:
    """Return the entries of a file's metadata.

    Beside the card's own they are those by which Ultralytics knows its own exports, so that its
    ``YOLO("file.onnx")`` takes the file.

    Args:
        card: The file's.
        stride: The largest of the model's, which sides of inputs are multiples of.
    """
    side, batch = int(card.input.imgsz), card.input.batch
    return {
        KEY: msgspec.json.encode(card).decode(),
        "description": f"{card.architecture.removesuffix('.yaml')} of {card.origin.run_id}",
        "license": card.licence,
        "task": "detect",
        "stride": str(stride),
        "batch": str(batch or 1),
        "imgsz": str([side, side]),
        "channels": "3",
        "names": str(dict(enumerate(card.class_names))),
        "end2end": str(card.output.nms_iou is None),
        "args": str({"batch": batch or 1, "dynamic": batch is None}),
    }


def _counted(bits: list[int]) -> dict[str, int]:
    return {str(width): count for width, count in sorted(Counter(bits).items())}


def _bits(codes: Tensor) -> int:
    """Return the bits that signed codes need, or unsigned ones where none is negative."""
    low, high = int(codes.min()), int(codes.max())
    return max(high, -low - 1).bit_length() + (low < 0)
