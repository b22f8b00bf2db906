"""Which layer hurts: a delivered model scored again with one part after the other in float.

What a part in float computes is said in `qatval.quant.unrounded`; all else is as delivered, but for
BatchNorm statistics. Those that a training, ``bn`` or ``shift`` has left fit activations behind
rounded weights, and behind a float weight they are wrong: kept as they are they made a real
YOLOv10n, ``ptq+shift``, score .124 with everything in float, which was delivered with .299 and has
.390 in FP32. There they are moved by what the part in float changes, as `qatval.quant.anchoring`
moves the checkpoint's, on a few training images. The FP32 checkpoint's own, which other methods
without a training keep, fit float weights and stay.

Every difference to the delivered model comes with its standard error over the validation images, by
the bootstrap that summaries record: both models are scored on the same resamples. It says nothing
of another training. With as many differences as there are parts, p-values are corrected by Holm's
procedure, and the largest gains are overstated because they were chosen as the largest.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qatval.analysis.family import adjusted
from qatval.analysis.intervals import Term, two_sided
from qatval.core.detectors import detector_of
from qatval.core.measurements import Record
from qatval.core.method_record import MethodRecord
from qatval.core.progress import Progress
from qatval.core.quantization import Quantization
from qatval.data.coco_protocol import evaluate_coco
from qatval.data.subset import Subset
from qatval.quant.anchoring import Anchor
from qatval.quant.integer import integer_layers
from qatval.quant.unrounded import answering_layers, float_layers, with_layers
from qatval.run.pipeline import torch_device
from qatval.run.reopened import models_of, quantized_run, scored_images
from qatval.train.calibration import CalibrationImages
from qatval.train.evaluation import Evaluator, evaluator

By = Literal["layer", "block", "head"]

TOLERANCE = 1e-3
"""How far the delivered model may score from what its run recorded, on another machine, in mAP."""

# Of one pass over the images. The detections of each, 300 an image, are kept until it is scored.
_MODELS_A_PASS = 8
_WORKERS = 8  # that load images for a GPU

_log = logging.getLogger(__name__)


class Gain(Record, frozen=True, omit_defaults=False):
    """What a model with something in float scores, in mAP 50-95.

    Attributes:
        value: Its score.
        gain: That minus the delivered model's.
        matched_gain: The same by COCO's interpolation (`qatval.data.coco_protocol`), which is what
            the bootstrap resamples.
        standard_error: Of the gain, over the choice of validation images.
    """

    value: float
    gain: float
    matched_gain: float
    standard_error: float


class PartGain(Gain, frozen=True, omit_defaults=False):
    """What one part of the model in float gains.

    Attributes:
        name: A layer, a block ``model.N``, or a branch of the head.
        layers: Full names of its layers.
        weight_bits: Of their codes, each width once.
        activation_bits: Of the codes of their inputs, each width once; none where they are float.
        weights: How many there are.
        share: Of the bits of all quantized weights that take part in an answer.
        p_value: Of no difference, corrected over all parts. The matched gain is tested: where few
            detections differ, the two interpolations may differ by more than any resample.
    """

    name: str
    layers: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weights: int
    share: float
    p_value: float


class Sensitivity(Record, frozen=True, omit_defaults=False):
    """The delivered model, all of it in float, and each part in float.

    Attributes:
        recorded: What the run recorded of the delivered model, on all of its images.
        images, of_images: Validation images scored here, and in the run.
        delivered: Score of the delivered model on the images scored here.
        delivered_error: Its standard error over the choice of images.
        statistics: What became of BatchNorm statistics where something is in float.
        calibration_images: On how many training images they were moved, 0 where they were kept.
        all_in_float: With no layer quantized.
        parts: By falling gain.
        idle: Layers that take no part in an answer, as those of a head to learn by.
    """

    run_id: str
    variant: str
    method: str
    mode: str
    by: By
    recorded: float | None
    images: int
    of_images: int
    delivered: float
    delivered_error: float
    statistics: Literal["kept", "moved"]
    calibration_images: int
    all_in_float: Gain
    parts: tuple[PartGain, ...]
    idle: tuple[str, ...]


class _Scored(NamedTuple):
    value: float
    matched: float
    resampled: NDArray[np.float64]


def sensitivity(
    root: Path,
    *,
    by: By,
    coco_root: Path | None,
    checkpoint: Path | None,
    images: int | None,
    device: str,
    cache_dir: Path | None,
    progress: Progress,
) -> Sensitivity:
    """Score a finished run's model with each of its parts in float.

    Args:
        root: The run root.
        by: What a part is: a layer, a block, or a branch of the head and all that is before it.
        coco_root: The run's data, None for where they were.
        checkpoint: What a method that trains nothing rounded, None for where it was.
        images: How many of the run's validation images to score, the first ones; None for all.
        device: ``"cpu"`` or a CUDA index.
        cache_dir: Where subsets are kept, None for the default.
        progress: Told how many models are scored.

    Raises:
        QatvalError: If the run is not finished, delivered nothing or is an FP32 control; or its
            files, its data or its checkpoint are missing or not what they were.
    """
    summary = quantized_run(root)
    on = torch_device(device)
    with tempfile.TemporaryDirectory() as folder:
        progress.stage("data")
        subset, of_images = scored_images(root, summary, coco_root, images, cache_dir, Path(folder))
        progress.stage("models")
        spec, delivered, latent = models_of(root, summary, checkpoint)
        in_float = float_layers(delivered.to(on), latent.to(on))
        size = int(summary.model.imgsz)
        answering = answering_layers(delivered, torch.zeros(1, 3, size, size, device=on))
        parts = _parts(delivered, answering, by)
        arguments = {
            "imgsz": size,
            "batch": summary.training.batch,
            "workers": _WORKERS,
            "device": device,
        }
        scorer = evaluator(subset, arguments, on, Path(folder))
        calibration, anchor = 0, None
        if _fit_to_rounding(summary.method):
            progress.stage("BatchNorm statistics")
            drawn = CalibrationImages(subset, len(subset.train), arguments, seed=0, device=on)
            calibration, anchor = drawn.count, Anchor(delivered, drawn.pixels)
        replaced: list[Mapping[str, nn.Module]] = [{}, in_float]
        replaced += [{name: in_float[name] for name in layers} for layers in parts.values()]
        progress.stage(f"scoring {len(replaced)} models", len(replaced))
        scored = []
        for score in _scores(scorer, subset, partial(_variant, delivered, anchor), replaced):
            scored.append(score)
            progress.step(len(scored))
    as_delivered, all_in_float, *of_parts = scored
    count, recorded = len(subset.val), summary.metrics.final_value
    if count == of_images and recorded is not None:
        _compare(root, as_delivered.value, recorded)
    sizes = {name: integer_layers(delivered)[name].codes.numel() for name in answering}
    return Sensitivity(
        run_id=summary.run_id,
        variant=summary.model.variant,
        method=summary.method.variant,
        mode=summary.quantization.mode,
        by=by,
        recorded=recorded,
        images=count,
        of_images=of_images,
        delivered=as_delivered.value,
        delivered_error=float(as_delivered.resampled.std(ddof=1)),
        statistics="moved" if anchor else "kept",
        calibration_images=calibration,
        all_in_float=_gain(all_in_float, as_delivered),
        parts=_ranked(
            parts, [_gain(score, as_delivered) for score in of_parts], sizes, spec, count
        ),
        idle=tuple(name for name in in_float if name not in sizes),
    )


def _parts(model: Any, layers: Sequence[str], by: By) -> dict[str, list[str]]:
    """Divide layers into parts by name, in the model's order."""
    head = f"model.{len(model.model) - 1}."
    of_classes = detector_of(model.yaml["yaml_file"]).class_layers
    parts: dict[str, list[str]] = {}
    for layer in layers:
        _, block, inner, *_ = layer.split(".")
        name = layer if by == "layer" else f"model.{block}"
        if by == "head":
            name = "before the head"
            if layer.startswith(head):
                answers = fnmatchcase(f"{head}{inner}.0.2", of_classes)
                name = f"{head}{inner} ({'classes' if answers else 'boxes'})"
        parts.setdefault(name, []).append(layer)
    return parts


def _fit_to_rounding(method: MethodRecord) -> bool:
    """Whether a method's BatchNorm statistics are of rounded weights."""
    return method.training != "none" or (method.bn is not None and method.bn.enabled)


def _variant(
    delivered: nn.Module, anchor: Anchor | None, layers: Mapping[str, nn.Module]
) -> nn.Module:
    """Return the delivered model with other layers in some places, and statistics that fit it."""
    model = with_layers(delivered, layers)
    if anchor is not None and layers:
        anchor.settle(model)
    return model


def _scores(
    scorer: Evaluator,
    subset: Subset,
    variant: Callable[[Mapping[str, nn.Module]], nn.Module],
    replaced: Sequence[Mapping[str, nn.Module]],
) -> Iterator[_Scored]:
    """Score the variant of the model for each set of layers that take others' places in it."""
    for first in range(0, len(replaced), _MODELS_A_PASS):
        models = [variant(layers) for layers in replaced[first:][:_MODELS_A_PASS]]
        for evaluation in scorer.evaluate_together(models, keep_detections=True):
            coco = evaluate_coco(subset.val_annotations, evaluation.detections)
            yield _Scored(evaluation.value, coco.matched_map, coco.bootstrap)


def _compare(root: Path, value: float, recorded: float) -> None:
    """Warn where the delivered model does not score what the run recorded of it."""
    if abs(value - recorded) > TOLERANCE:
        _log.warning(
            "%s: the delivered model scores %.4f here and %.4f in its run: images, libraries or "
            "the machine differ",
            root,
            value,
            recorded,
        )


def _gain(scored: _Scored, delivered: _Scored) -> Gain:
    error = float((scored.resampled - delivered.resampled).std(ddof=1))
    return Gain(
        scored.value,
        scored.value - delivered.value,
        scored.matched - delivered.matched,
        error,
    )


def _ranked(
    parts: Mapping[str, Sequence[str]],
    gains: Sequence[Gain],
    weights: Mapping[str, int],
    spec: Quantization,
    images: int,
) -> tuple[PartGain, ...]:
    """Return the parts by falling gain; those that gain alike stay in the model's order."""
    bits = {name: count * spec.weight_bits(name) for name, count in weights.items()}
    p_values = adjusted([[_p_value(gain, images)] for gain in gains])
    found = [
        PartGain(
            value=gain.value,
            gain=gain.gain,
            matched_gain=gain.matched_gain,
            standard_error=gain.standard_error,
            name=name,
            layers=tuple(layers),
            weight_bits=tuple(sorted({spec.weight_bits(layer) for layer in layers})),
            activation_bits=tuple(
                sorted({width for layer in layers if (width := spec.activation_bits(layer))})
            ),
            weights=sum(weights[layer] for layer in layers),
            share=sum(bits[layer] for layer in layers) / sum(bits.values()),
            p_value=p_value,
        )
        for (name, layers), gain, (p_value,) in zip(parts.items(), gains, p_values, strict=True)
    ]
    return tuple(sorted(found, key=lambda part: -part.gain))


def _p_value(gain: Gain, images: int) -> float:
    """Return the p-value of no gain; what no resample moves is no evidence of one."""
    if not gain.standard_error:
        return 1.0
    return two_sided(gain.matched_gain, [Term(gain.standard_error**2, max(images - 1, 1))])
