"""Variants and profiles, and the preset files that say what they are.

Presets are data (``*.toml`` in this package); frozen dataclasses give them types and check them.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from qatval.core.checkout import located
from qatval.core.detectors import Detector, detector_of
from qatval.core.detectors.yolo10 import FAMILY as YOLO10
from qatval.core.errors import UsageError, quoted
from qatval.core.quantization import Quantization, Start

DEFAULT_COCO_ROOT = Path("datasets/coco2017/source-data")
EMBEDDED = "shapes"
"""The embedded dataset; what is drawn with other settings is called ``"shapes-"`` and a digest."""
MAX_CLASSES = 20_000
"""Beyond the largest label set of a public detection dataset (V3Det: 13,204)."""
MAX_CLASS_NAME = 1000
"""Characters; LVIS and Objects365 stay below 60."""

BatchNorm = Literal["running", "anchored"]
"""What BatchNorm statistics a training is scored and ends with: running averages over its batches,
or the FP32 checkpoint's, moved by what sets the trained model apart from it."""


@dataclass(frozen=True)
class Variant:
    """A detector of one size.

    Attributes:
        checkpoint: Where the official checkpoint is expected, from the current folder.
        architecture: Ultralytics' model file.
        sha256: Digest of the official checkpoint, None if it is not known.
        embedded_checkpoint: What a run on the embedded dataset starts from, None if there is none.
        validated: Whether the scenarios of ``pytest`` are made of it and a machine is to have it.
        requires: Variants whose runs must have held before it may be trained: the stage gate.
    """

    name: str
    checkpoint: Path
    architecture: str
    sha256: str | None = None
    embedded_checkpoint: Path | None = None
    validated: bool = False
    requires: tuple[str, ...] = ()

    @property
    def detector(self) -> Detector:
        """The family that it is of."""
        return detector_of(self.architecture)

    def checkpoint_for(self, dataset: str) -> Path:
        """Return the checkpoint that a fine-tuning on this dataset starts from.

        Raises:
            UsageError: If there is none for it.
        """
        if dataset != EMBEDDED:
            return self.checkpoint
        if self.embedded_checkpoint is None:
            raise UsageError(
                f"{self.name} has no embedded checkpoint: train one with "
                f"'qatval pretrain --variant {self.name}' and give it with --checkpoint"
            )
        return self.embedded_checkpoint


@dataclass(frozen=True)
class Profile:
    """How long a run trains, on how much of a dataset, at which size.

    Attributes:
        train_images, val_images: Asked-for counts; None means all.
        imgsz: Side of the square network input in pixels.
        correction_lr: Learning rate of QC where the method's own makes no sense, else None.
        batchnorm: Statistics of the trained model.
        overrides: Ultralytics training arguments.
    """

    dataset: str
    name: str
    epochs: int
    batch: int
    imgsz: int
    train_images: int | None = None
    val_images: int | None = None
    correction_lr: float | None = None
    batchnorm: BatchNorm = "running"
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, **run: Any) -> dict[str, Any]:
        """Return Ultralytics' training arguments, with what a run adds (seed, device, ...)."""
        schedule = {"epochs": self.epochs, "batch": self.batch, "imgsz": self.imgsz}
        return {**self.overrides, **schedule, **run}


def default_coco_root() -> Path:
    """Return where COCO 2017 is expected, from the current folder."""
    return located(DEFAULT_COCO_ROOT)


@functools.cache
def _presets(name: str) -> dict[str, Any]:
    return tomllib.loads((files("qatval.core.presets") / f"{name}.toml").read_text("utf-8"))


def _choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise UsageError(f"unknown {kind} '{name}': expected one of {', '.join(table)}")
    return table[name]


def variant_names() -> tuple[str, ...]:
    """Return the names of all variants."""
    return tuple(_presets("variants"))


def validated_variants() -> tuple[str, ...]:
    """Return the names of the variants that are validated, smallest first."""
    return tuple(name for name in variant_names() if variant(name).validated)


def profile_names() -> tuple[str, ...]:
    """Return the names of all profiles, shortest first."""
    return tuple(_presets("profiles")["coco2017"])


def variant(name: str) -> Variant:
    """Return a variant by name; raise UsageError with the choices if there is none."""
    preset = _choose("variant", name, _presets("variants"))
    paths = {k: located(Path(v)) for k, v in preset.items() if k.endswith("checkpoint")}
    requires = tuple(preset.get("requires", ()))
    return Variant(name=name, **{**preset, **paths, "requires": requires})


def refuse_unknown_model(architecture: str, class_names: Sequence[str]) -> None:
    """Refuse to build anything but a variant's architecture, for classes within bounds.

    Ultralytics takes an architecture for the path of a model file, or for its content, and
    evaluates what stands there: no file of a stranger may name one.

    Raises:
        UsageError: It says what was expected and what came.
    """
    known = [variant(name).architecture for name in variant_names()]
    if architecture not in known:
        raise UsageError(
            f"unknown architecture {quoted(architecture)}: expected one of {', '.join(known)}"
        )
    if not 1 <= len(class_names) <= MAX_CLASSES:
        raise UsageError(f"expected 1 to {MAX_CLASSES} classes, got {len(class_names)}")
    if long := next((name for name in class_names if len(name) > MAX_CLASS_NAME), None):
        raise UsageError(
            f"expected class names of up to {MAX_CLASS_NAME} characters, got {quoted(long)} of "
            f"{len(long)}"
        )


def profile(dataset: str, name: str) -> Profile:
    """Return a dataset's profile; raise UsageError with the choices if there is none."""
    table = _choose("dataset", dataset, _presets("profiles"))
    return Profile(dataset=dataset, name=name, **_choose("profile", name, table))


def pretraining(dataset: str) -> Profile:
    """Return how a dataset's own checkpoint is trained from scratch."""
    table = _choose("dataset", dataset, _presets("pretrain"))
    return Profile(dataset=dataset, name="pretrain", **table)


def quantization_names() -> tuple[str, ...]:
    """Return the names of all quantization presets."""
    return tuple(_presets("quantization"))


def quantization(name: str, detector: Detector = YOLO10) -> Quantization:
    """Return a quantization preset; raise UsageError with the choices if there is none.

    Args:
        name: Of the preset.
        detector: Says which layers are the first and the last ones and which stay in float.
    """
    preset = _choose("quantization", name, _presets("quantization"))
    start = Start(**preset.get("start", {}))
    layers = {"boundary": detector.boundary, "exempt": dict(detector.exempt)}
    return Quantization(**{**preset, **layers, "start": start})
