"""The export to ONNX: fold, trace, quantize the graph, check it, write it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write
from qatval.deploy.card import Card
from qatval.deploy.export.description import metadata_of
from qatval.deploy.export.folding import folded
from qatval.deploy.export.tracing import ANSWER, ANY, CANDIDATES, Answering, traced, with_one_head
from qatval.quant.integer import integer_layers


@dataclass(frozen=True)
class Written:
    """Sizes of a file that was written.

    Attributes:
        bytes: Its own.
        float_bytes: What it would have with float32 in the place of codes.
    """

    bytes: int
    float_bytes: int


def require_exporter() -> None:
    """Refuse to begin where a package of the extra is missing.

    Raises:
        QatvalError: It says how to install it.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise QatvalError(
                f"an export needs {package}, which cannot be imported ({error}); install it with "
                "pip install 'qatval[export]'"
            ) from error


def require_side(imgsz: int, model: Any) -> None:
    """Refuse a side of the input that the strides of a detector do not divide.

    Raises:
        QatvalError: It names one that would do.
    """
    if imgsz % (stride := _stride(model)):
        near = max(stride, round(imgsz / stride) * stride)
        raise QatvalError(
            f"expected a multiple of {stride} pixels, the model's largest stride, as side of the "
            f"input, got {imgsz}; give {near}"
        )


def export_onnx(model: Any, card: Card, out: Path) -> Written:
    """Write a detector as an ONNX file, once its codes and its answer are found to be the model's.

    The same model and card give the same bytes.

    Args:
        model: As `qatval.train.models.load_checkpoint` returns it, float or of integer codes, on
            the CPU; it is left as it is.
        card: Goes into the file; what it says of storage, side and batch is how the file is made.
        out: The file, replaced in one step.

    Raises:
        QatvalError: If a package is missing, the side of the input does not fit the model, the
            graph does not compute what the model does, or the file cannot be written.
    """
    require_exporter()
    # what needs packages of the extra
    from qatval.deploy.export import agreement, graph

    imgsz, batch = int(card.input.imgsz), card.input.batch
    require_side(imgsz, model)
    single = with_one_head(model)
    plain, layers = folded(single)
    exported = traced(plain, imgsz, batch and int(batch), graph.OPSET)
    graph.quantize(exported, layers, card.storage)
    graph.split_by_gather(exported, layers)
    graph.tidy(exported, card.architecture.removesuffix(".yaml"))
    for key, value in metadata_of(card, _stride(model)).items():
        exported.metadata_props.add(key=key, value=value)

    images = agreement.seeded_images(int(batch or ANY), imgsz)
    agreement.require_same_codes(exported, layers)
    agreement.require_same_rounding(exported, layers, images)
    for layer in integer_layers(single).values():
        layer.input_scale = layer.input_range = None
    chosen = card.output.nms_iou is None
    agreement.require_same_answer(
        exported,
        CANDIDATES if chosen else ANSWER,
        lambda images: Answering(single)(images)[-1],
        images,
        channels=2 if chosen else 1,
    )
    content = exported.SerializeToString(deterministic=True)
    atomic_write(out, content)
    return Written(len(content), len(content) + graph.bytes_saved(exported))


def _stride(model: Any) -> int:
    return int(max(model.stride))
