"""Variants and profiles, and the preset files that say what they are.

Presets are data (``*.toml`` in this package); frozen dataclasses give them types and check them.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from qatval.core.errors import UsageError
from qatval.core.quantization import Quantization, Start

DEFAULT_COCO_ROOT = Path("datasets/coco2017/source-data")

BatchNorm = Literal["running", "anchored"]
"""What BatchNorm statistics a training is scored and ends with: running averages over its batches,
or the FP32 checkpoint's, moved by what sets the trained model apart from it."""


@dataclass(frozen=True)
class Variant:
    """A YOLOv10 size.

    Attributes:
        checkpoint: Where the official checkpoint is expected.
        embedded_checkpoint: What a run on the embedded dataset starts from, None if there is none.
        architecture: Ultralytics' model file.
        gated: Whether the stage gate must be open.
    """

    name: str
    checkpoint: Path
    embedded_checkpoint: Path | None
    architecture: str
    gated: bool

    def checkpoint_for(self, dataset: str) -> Path:
        """Return the checkpoint that a fine-tuning on this dataset starts from.

        Raises:
            UsageError: If there is none for it.
        """
        if dataset != "shapes":
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


def profile_names() -> tuple[str, ...]:
    """Return the names of all profiles, shortest first."""
    return tuple(_presets("profiles")["coco2017"])


def variant(name: str) -> Variant:
    """Return a variant by name; raise UsageError with the choices if there is none."""
    preset = _choose("variant", name, _presets("variants"))
    embedded = preset.get("embedded_checkpoint")
    return Variant(
        name=name,
        checkpoint=Path(preset["checkpoint"]),
        embedded_checkpoint=Path(embedded) if embedded else None,
        architecture=preset["architecture"],
        gated=preset["gated"],
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


def quantization(name: str) -> Quantization:
    """Return a quantization preset; raise UsageError with the choices if there is none."""
    preset = _choose("quantization", name, _presets("quantization"))
    return Quantization(
        **{
            **preset,
            "boundary": tuple(preset.get("boundary", ())),
            "start": Start(**preset.get("start", {})),
        }
    )
