"""What an exported file says of itself: how to feed it, what it answers, where it comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from qatval.core.deployment import WeightStorage
from qatval.core.measurements import Count, Number, Record, Share

KEY = "qatval"
"""Of the entry of a file's metadata that holds the card, as JSON."""

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Input(Record, frozen=True, omit_defaults=False):
    """How an image becomes the graph's input.

    Attributes:
        imgsz: Side of the square input in pixels.
        batch: Images of one call, None for any number.
        layout, colours, range: Of the float32 tensor.
        resize: The longer side becomes ``imgsz``, bilinear; both keep their ratio.
        padding: Grey level in [0, 255] of what is added to the shorter side, half before, half
            after.
    """

    imgsz: Number
    batch: Number | None
    layout: Literal["NCHW"] = "NCHW"
    colours: Literal["RGB"] = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    resize: Literal["bilinear"] = "bilinear"
    padding: Count = 114


class Output(Record, frozen=True, omit_defaults=False):
    """What the graph answers.

    Attributes:
        head: The head that answers, in the words of run summaries.
        nms_iou: None where the answer is final: ``(batch, detections, 6)``, a row being left, top,
            right and bottom in pixels of the input, score and class. Else the answer is
            ``(batch, 4 + classes, anchors)``, centre, width and height in pixels of the input and
            a score for each class, which NMS at this overlap makes final.
        confidence: Below which detections do not count where the model is scored.
        max_detections: Of one image.
    """

    head: str
    nms_iou: Share | None
    confidence: Share
    max_detections: Number


class Origin(Record, frozen=True, omit_defaults=False):
    """The run that made the weights.

    Attributes:
        run_id: As in its summary.
        method: The method's name.
        summary_sha256: Of its ``run_summary.json``, None where the run was not finished yet.
        weights_sha256: Of the weights file that was exported.
        value: mAP 50-95 that the run reports of these weights; None where the input has another
            size than the run's.
        val_images: How many validation images it asked for, None for all.
        dataset: What its data are, as in its summary.
    """

    run_id: str
    method: str
    summary_sha256: Sha256 | None
    weights_sha256: Sha256
    value: float | None
    val_images: Number | None
    dataset: dict[str, object] | None


class Card(Record, frozen=True, omit_defaults=False):
    """The whole of it.

    Attributes:
        version: Of the card's own form.
        architecture: Ultralytics' model file, e.g. ``"yolov10n.yaml"``.
        class_names: In the order of the head's outputs.
        storage: How quantized weights lie in the file.
        weight_bits: Of the codes -> how many layers have them; those that are float are not here.
        activation_bits: Of the codes of inputs -> how many layers have them.
    """

    version: Literal[1]
    architecture: str
    class_names: tuple[str, ...]
    input: Input
    output: Output
    storage: WeightStorage
    weight_bits: dict[str, Count]
    activation_bits: dict[str, Count]
    origin: Origin
    licence: str = "AGPL-3.0-or-later"
