"""What is known about detectors: the class that says what a family has to say, a module per family.

Nothing here imports torch. Models, predictions and criteria are Ultralytics' own, taken as they
come.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from qatval.core.errors import UsageError


class Detector:
    """A family of detectors: a subclass in a module of its own, its one instance called `FAMILY`.

    All patterns are those of `fnmatch`. What the methods do here suits a family with one head.

    Attributes:
        files: Patterns of the names of its model files, Ultralytics' ``*.yaml``.
        boundary: Patterns of the full names of the first and the last convolutions.
        exempt: Pattern of a module's full name -> why that stays in float.
        class_layers: Pattern of the full names of the layers, of all heads, whose weight and bias
            have one row per class.
        head: Which head is scored, in the words of summaries.
        nms_iou: Overlap in [0, 1] above which NMS leaves out the box of lower score of a class;
            None where the head is scored as it answers.
    """

    files: tuple[str, ...]
    boundary: tuple[str, ...]
    exempt: Mapping[str, str]
    class_layers: str
    head: str
    nms_iou: float | None

    def prepare(self, model: Any) -> None:
        """Let a new model answer through the head that is scored."""

    def settle(self, criterion: Any) -> None:
        """Give a model's criterion, in place, the weights that its terms end a training with."""

    def heads(self, predictions: Any) -> Sequence[Mapping[str, Any]]:
        """Return each head's raw outputs among a model's, for a teacher to be compared with.

        They are Ultralytics': ``scores``, logits ``(images, classes, anchors)``, and ``boxes``,
        ``(images, 4 * bins, anchors)``: of each side the logits of a distribution of its distance
        over bins one stride wide, or with one bin the distance itself in strides.
        """
        return (predictions,)


@functools.cache
def detector_of(architecture: str) -> Detector:
    """Return the family that a model file, e.g. ``"yolov10n.yaml"``, belongs to by its name.

    Raises:
        UsageError: If it belongs to none; the message lists them.
    """
    modules = (m.name for m in pkgutil.iter_modules(__path__, f"{__name__}."))
    families: list[Detector] = [importlib.import_module(name).FAMILY for name in modules]
    for family in families:
        if any(fnmatchcase(PurePath(architecture).name, pattern) for pattern in family.files):
            return family
    known = ", ".join(pattern for family in families for pattern in family.files)
    raise UsageError(
        f"no detector family knows '{architecture}': expected one of {known}, or a new module in "
        "core/detectors"
    )
