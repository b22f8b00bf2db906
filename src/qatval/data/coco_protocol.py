"""Score detections with pycocotools, as a check of Ultralytics' mAP.

The primary metric is Ultralytics' mAP. The two protocols differ in what they look at. COCO's takes
boxes clipped to the image, 100 of them per image, and ignores those in crowd regions; Ultralytics
scores boxes as the model gave them, 300 per image, and does not know crowd regions. And they
interpolate the precision-recall curve differently: COCO takes the mean of a step function over 101
recalls, Ultralytics the area under straight lines that begin at precision 1. That alone made up to
0.012 in a class and 0.006 in the mean of six (embedded data at 64 px), with not one detection
matched otherwise.

The check of one against the other therefore gives pycocotools what Ultralytics scored, and
interpolates Ultralytics' matches as COCO does (`interpolated_map`). What is left is what is to be
checked: boxes, scores, classes and matching. What is reported as the COCO value is COCO's own
protocol.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qatval.data.coco import Detection

MAX_DETECTIONS = 300
"""Detections per image that Ultralytics keeps."""

TOLERANCE = 0.002
"""How far the two may lie apart in mAP 50-95 where both interpolate alike.

Detections are written with boxes of three and scores of six decimals, so a detection may pass a
threshold on one side only, or two may change places. In a class with a single object one such hit
at one of ten IoU thresholds makes 0.1 of its AP: 0.00125 of the mean of 80 classes. Measured:
0.000004 on embedded images.
"""

RESAMPLES = 500


@dataclass(frozen=True)
class CocoResult:
    """pycocotools' view of a model's detections, in [0, 1].

    Attributes:
        map, map50: AP at IoU 0.50:0.95 and at 0.50 under COCO's own protocol.
        matched_map: AP at 0.50:0.95 on what Ultralytics scores: no crowd regions, 300 detections
            per image, boxes not clipped.
        detections: The detections clipped to their images, as COCO's own protocol scored them.
        bootstrap: ``matched_map`` of each resample of the images, shape ``(resamples,)``.
    """

    map: float
    map50: float
    matched_map: float
    detections: list[Detection]
    bootstrap: NDArray[np.float64]


def evaluate_coco(
    annotations: Path,
    detections: Sequence[Detection],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> CocoResult:
    """Score detections with pycocotools.

    The bootstrap draws images with replacement. Its draws depend on ``seed`` and the number of
    images alone, so the replicates of two models on the same images are paired.

    Args:
        annotations: COCO annotation file of the validation images.
        detections: In COCO's result format, boxes ``[x, y, width, height]`` in pixels, not
            clipped to the image.
        seed: Seed of the bootstrap.
        resamples: How often images are drawn for it.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        inside = _clipped(truth, detections)
        usual = _evaluate(truth, inside, max_detections=100)
        objects = [a for a in truth.dataset["annotations"] if not a["iscrowd"]]
        matched = _evaluate(_coco(truth, objects), detections, max_detections=MAX_DETECTIONS)
    images = len(matched.params.imgIds)
    draws = np.random.default_rng(seed).integers(images, size=(resamples, images))
    weights = np.array([np.bincount(draw, minlength=images) for draw in draws], np.int64)
    return CocoResult(
        map=_average_precision(usual),
        map50=_average_precision(usual, iou=0.5),
        matched_map=_average_precision(matched),
        detections=inside,
        bootstrap=resampled_map(matched, weights.reshape(resamples, images)),
    )


def interpolated_map(
    hits: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    predicted: NDArray[Any],
    objects: NDArray[Any],
) -> float:
    """Return the mAP of matched detections by COCO's interpolation.

    The mean of the precision envelope at recalls 0, 0.01, ..., 1, over IoU thresholds and the
    classes that have objects; 0 where there are none.

    Args:
        hits: Whether a detection is a true positive, ``(detections, thresholds)``.
        scores: ``(detections,)``.
        predicted: Class of each detection, ``(detections,)``.
        objects: Class of each object, ``(objects,)``.
    """
    recalls = np.linspace(0.0, 1.0, 101)
    order = np.argsort(-scores, kind="mergesort")
    hits, predicted = hits[order], predicted[order]
    found = []
    for label, count in zip(*np.unique(objects, return_counts=True), strict=True):
        of_class = hits[predicted == label].T
        seen = np.arange(1, of_class.shape[1] + 1)
        found += _precisions(np.cumsum(of_class, axis=1), seen, count, recalls)
    return float(np.mean(found)) if found else 0.0


def _precisions(
    true_positives: NDArray[np.int64], seen: NDArray[Any], count: int, recalls: NDArray[Any]
) -> list[np.float64]:
    """Return the mean precision over some recalls at each threshold.

    Args:
        true_positives: Among the best detections of a class, ``(thresholds, detections)``.
        seen: How many those are, ``(detections,)``.
        count: How many objects of the class there are.
    """
    precision = true_positives / seen
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(envelope, ((0, 0), (0, 1)))
    return [
        row[np.searchsorted(found / count, recalls, side="left")].mean()
        for row, found in zip(padded, true_positives, strict=True)
    ]


def _clipped(truth: COCO, detections: Sequence[Detection]) -> list[Detection]:
    clipped = []
    for detection in detections:
        image = truth.imgs[detection["image_id"]]
        x, y, width, height = detection["bbox"]
        left, right = (min(max(side, 0.0), image["width"]) for side in (x, x + width))
        top, bottom = (min(max(side, 0.0), image["height"]) for side in (y, y + height))
        inside = detection.copy()
        inside["bbox"] = [round(side, 3) for side in (left, top, right - left, bottom - top)]
        clipped.append(inside)
    return clipped


def _coco(truth: COCO, annotations: list[dict[str, Any]]) -> COCO:
    """Return other annotations of the same images."""
    coco = COCO()
    coco.dataset = {**truth.dataset, "annotations": annotations}
    coco.createIndex()
    return coco


def _evaluate(truth: COCO, detections: Sequence[Detection], *, max_detections: int) -> COCOeval:
    # COCO.loadRes refuses an empty list, and a model without a detection is a result too.
    found = [
        {**d, "id": number, "iscrowd": 0, "area": d["bbox"][2] * d["bbox"][3]}
        for number, d in enumerate(detections, start=1)
    ]
    evaluation = COCOeval(truth, _coco(truth, found), "bbox")
    evaluation.params.maxDets = [max_detections]
    # All of them: pycocotools' own range ends at 10^5 px squared and ignores what is larger.
    evaluation.params.areaRng = [[-math.inf, math.inf]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _average_precision(evaluation: COCOeval, iou: float | None = None) -> float:
    """Mean over IoU thresholds, recalls and the categories that have objects."""
    precision = evaluation.eval["precision"][..., 0, 0]
    if iou is not None:
        precision = precision[np.isclose(evaluation.params.iouThrs, iou)]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def resampled_map(evaluation: COCOeval, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """AP at 0.50:0.95 with every image counted as often as it was drawn.

    pycocotools matches detections to objects once per image; drawing an image twice does not
    change its matches. Only the accumulation over images is done again, here for all thresholds
    at once, since pycocotools' own loops over every detection in Python.

    Args:
        evaluation: Evaluated, without ignored objects.
        weights: How often each image counts, shape ``(resamples, images)``.

    Returns:
        AP of each resample, shape ``(resamples,)``; equal to pycocotools' where all weights are 1.
    """
    recalls = evaluation.params.recThrs
    total = np.zeros(len(weights))
    present = np.zeros(len(weights), dtype=np.int64)
    for objects, image_of, hits in _matches_by_category(evaluation):
        counts = weights @ objects
        for draw, (weight, count) in enumerate(zip(weights, counts, strict=True)):
            if count == 0:
                continue
            present[draw] += 1
            seen = np.cumsum(weight[image_of]) + np.spacing(1)
            true_positives = np.cumsum(hits * weight[image_of], axis=1)
            total[draw] += np.mean(_precisions(true_positives, seen, count, recalls))
    return total / np.maximum(present, 1)


def _matches_by_category(
    evaluation: COCOeval,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield, per category, what its detections hit, by falling score.

    Yields:
        objects: Objects in each image, ``(images,)``.
        image_of: Index of the image of each detection, ``(detections,)``.
        hits: Whether a detection is a true positive, ``(thresholds, detections)``.
    """
    images = len(evaluation.params.imgIds)
    thresholds = len(evaluation.params.iouThrs)
    nothing: dict[str, Any] = {"gtIds": [], "dtScores": [], "dtMatches": np.empty((thresholds, 0))}
    for first in range(0, len(evaluation.evalImgs), images):
        matches = [m or nothing for m in evaluation.evalImgs[first : first + images]]
        objects = np.array([len(m["gtIds"]) for m in matches])
        scores = [np.asarray(m["dtScores"]) for m in matches]
        hits = [np.asarray(m["dtMatches"]) > 0 for m in matches]
        order = np.argsort(-np.concatenate(scores), kind="mergesort")
        image_of = np.repeat(np.arange(images), [len(s) for s in scores])[order]
        yield objects, image_of, np.concatenate(hits, axis=1)[:, order]
