"""What can be run: variants, profiles, quantizations and the run itself, from the preset files.

Presets are data (``qatval/presets/*.toml``); the frozen dataclasses here give them types and check
them. Nothing in this module imports torch, so choices can be listed and refused at once.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from qatval.errors import UsageError
from qatval.methods import Correction, Method, Recipe, Statistics, method_names

COLLAPSE_THRESHOLD_RATIO = 0.5
PRIMARY_METRIC = "metrics/mAP50-95(B)"
DEFAULT_COCO_ROOT = Path("datasets/coco2017/source-data")

ScaleGranularity = Literal["per-tensor", "per-channel"]

Scaling = Literal["learned", "statistics"]
"""Where a weight scale comes from: a parameter (LSQ), or ``max|w|`` in every forward."""

StartScale = Literal["max", "mse", "lsq"]

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


@dataclass(frozen=True)
class Start:
    """What happens to a checkpoint between the insertion of quantizers and the first step.

    See `qatval.quant.start` for what each means.

    Attributes:
        scale: Where learned weight scales start.
        statistics: What BatchNorm statistics become on the calibration images.
    """

    scale: StartScale = "max"
    statistics: Statistics = "kept"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("scale", self.scale, get_args(StartScale)),
            ("statistics", self.statistics, get_args(Statistics)),
        ):
            if value not in choices:
                raise UsageError(
                    f"the start's {name} must be one of {', '.join(choices)}, got '{value}'"
                )


@dataclass(frozen=True)
class Quantization:
    """Fake quantization: bits, grids and the layers that stay in float.

    Attributes:
        weight_bit_width: Bits of a weight code, 2 to 8.
        narrow_range: Whether the most negative weight code is left out.
        scale: Granularity of the weight scales.
        scale_without_batchnorm: Granularity in layers that no BatchNorm follows.
        exempt: Pattern of a module's full name -> why it stays in float.
        scaling: Where the weight scales come from.
        activation_bit_width: Bits of the code of each layer's input, 2 to 8, or None to leave
            activations in float. Their scales are per-tensor and learned.
        boundary: Patterns of the full names of the first and the last layers.
        boundary_bit_width: Bits of weights (and of activations, where they are quantized) in
            those layers, or None for the same as everywhere.
        start: How the first step is prepared.
    """

    weight_bit_width: int
    narrow_range: bool
    scale: ScaleGranularity
    scale_without_batchnorm: ScaleGranularity
    exempt: Mapping[str, str]
    scaling: Scaling = "learned"
    activation_bit_width: int | None = None
    boundary: tuple[str, ...] = ()
    boundary_bit_width: int | None = None
    start: Start = Start()

    def __post_init__(self) -> None:
        if self.scaling == "statistics" and self.start.scale != "max":
            raise UsageError(
                f"scales from statistics are max|w| in every forward, so they cannot start at "
                f"'{self.start.scale}': give --start-scale max or --scaling learned"
            )
        for name, bits in (
            ("weight", self.weight_bit_width),
            ("activation", self.activation_bit_width),
            ("boundary", self.boundary_bit_width),
        ):
            if bits is not None and not 2 <= bits <= 8:
                raise UsageError(f"{name} bits must lie in 2..8, got {bits}")

    @property
    def mode(self) -> str:
        """Name that the summary records, e.g. ``"w4a16"``."""
        return f"w{self.weight_bit_width}a{self.activation_bit_width or 16}"

    @property
    def calibrated(self) -> bool:
        """Whether images are needed before the first step, for the scales of activations."""
        return self.activation_bit_width is not None

    def weight_bits(self, layer: str) -> int:
        """Return the bits of the weight codes of the layer of this full name."""
        return self._at_the_boundary(layer) or self.weight_bit_width

    def activation_bits(self, layer: str) -> int | None:
        """Return the bits of the codes of the layer's input, or None if it stays in float."""
        if self.activation_bit_width is None:
            return None
        return self._at_the_boundary(layer) or self.activation_bit_width

    def _at_the_boundary(self, layer: str) -> int | None:
        at = any(fnmatchcase(layer, pattern) for pattern in self.boundary)
        return self.boundary_bit_width if at else None

    def exemption(self, layer: str) -> str | None:
        """Return why the layer of this full name stays in float, or None if it does not."""
        for pattern, reason in self.exempt.items():
            if fnmatchcase(layer, pattern):
                return reason
        return None


@functools.cache
def _presets(name: str) -> dict[str, Any]:
    return tomllib.loads((files("qatval") / "presets" / f"{name}.toml").read_text("utf-8"))


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


@dataclass(frozen=True)
class RunConfig:
    """What is run together: methods on one subset, with one precision and one seed.

    Attributes:
        methods: Each gets a run root; those with equal recipes share a training.
        run_root: The run's folder; with several methods, the folder of their run roots.
        coco_root: Dataset in COCO 2017's layout.
        checkpoint: Pretrained FP32 checkpoint (``.pt`` or ``.safetensors``).
        device: ``"cpu"``, or CUDA indices such as ``"0"`` or ``"0,1"``; None for the first GPU
            if there is one, else the CPU.
        workers: Data-loading processes (Ultralytics uses none on CPU).
        amp: Whether CUDA runs use automatic mixed precision.
        image_list: Image ids or file names that replace the random draw, or None.
        cache_dir: Where subsets are kept, or None for the default.
        gate_root: Folder of the runs that the stage gate judges, for a gated variant.
        overwrite: Whether a finished run in the run root is replaced.
        fused: Whether training fake-quantizes all weights at once, which gives the same results
            sooner, or layer by layer through Brevitas.
        track: Whether the oscillation of the weights is measured, which changes no result.
    """

    variant: Variant
    methods: tuple[Method, ...]
    profile: Profile
    quantization: Quantization
    seed: int
    run_root: Path
    coco_root: Path
    checkpoint: Path
    device: str | None = None
    workers: int = 8
    amp: bool = True
    image_list: Path | None = None
    cache_dir: Path | None = None
    gate_root: Path | None = None
    overwrite: bool = False
    fused: bool = True
    track: bool = True

    def __post_init__(self) -> None:
        if not self.methods:
            raise UsageError(f"no method given: expected one of {', '.join(method_names())}")
        names = [m.name for m in self.methods]
        if len(set(names)) != len(names):
            raise UsageError(f"a method is given twice: {', '.join(names)}")
        if self.quantization.scaling == "statistics" and any(m.rounding for m in self.methods):
            raise UsageError(
                "GPTQ needs scales that stay while weights are rounded: use --scaling learned, or "
                "name the methods without gptq instead of --with-controls"
            )
        for name, value in (
            ("epochs", self.profile.epochs),
            ("batch", self.profile.batch),
            ("imgsz", self.profile.imgsz),
        ):
            if value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if self.profile.imgsz % 32:
            raise UsageError(f"--imgsz must be a multiple of 32, got {self.profile.imgsz}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed must lie in 0..2147483647, got {self.seed}")

    def root_of(self, name: str) -> Path:
        """Return the run root of one of the methods."""
        return self.run_root if len(self.methods) == 1 else self.run_root / name

    def trainings(self) -> list[tuple[Recipe | None, tuple[Method, ...]]]:
        """Return the trainings that the methods take, each with the methods that share it."""
        found: list[tuple[Recipe | None, list[Method]]] = []
        for method in self.methods:
            sharing = next((methods for recipe, methods in found if recipe == method.recipe), None)
            if sharing is None:
                found.append((method.recipe, [method]))
            else:
                sharing.append(method)
        return [(recipe, tuple(methods)) for recipe, methods in found]

    def correction_of(self, chosen: Method) -> Correction | None:
        """Return the method's QC settings as this profile runs them."""
        if chosen.correction is None or self.profile.correction_lr is None:
            return chosen.correction
        return replace(chosen.correction, lr=self.profile.correction_lr)
