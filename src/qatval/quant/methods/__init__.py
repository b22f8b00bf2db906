"""Stabilisation methods and their controls: names, and what they stand for.

A name joins parts with ``+``: ``baseline`` has none, ``dampen+ema+qc`` dampens oscillations in
training, takes the moving average and corrects it. Parts are tables of ``methods.toml`` and
of the same file in any installed package that names itself in the entry-point group
``qatval.quant.methods``. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any, Literal

from qatval.core.errors import UsageError
from qatval.core.quantization import Statistics

BASELINE = "baseline"
ENTRY_POINTS = "qatval.methods"

Arm = Literal["raw", "ema"]
"""What is scored along a training: the weights themselves, or their moving average."""


@dataclass(frozen=True)
class Averaging:
    """An exponential moving average whose horizon follows the length of the run.

    Attributes:
        max_decay: Decay of a run long enough for it, in [0, 1).
        max_tau: Time constant of the ramp in a run long enough for it, in optimizer steps.
        window: Averaging window ``1 / (1 - decay)`` as a share of the run's steps.
        ramp: ``tau`` as a share of the run's steps.
    """

    max_decay: float
    max_tau: float
    window: float
    ramp: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_decay < 1.0:
            raise UsageError(f"EMA decay must lie in [0, 1), got {self.max_decay}")
        if min(self.max_tau, self.window, self.ramp) <= 0.0:
            raise UsageError(
                "EMA max_tau, window and ramp must be positive, "
                f"got {self.max_tau}, {self.window}, {self.ramp}"
            )

    def for_steps(self, steps: int) -> tuple[float, float]:
        """Return ``(decay, tau)`` for a run of ``steps`` optimizer steps."""
        window = max(self.window * steps, 1.0)
        return min(self.max_decay, 1.0 - 1.0 / window), min(self.max_tau, self.ramp * steps)


@dataclass(frozen=True)
class Correction:
    """Quantization correction (QC): how long and how fast gamma and beta are learned."""

    epochs: int
    lr: float


@dataclass(frozen=True)
class Rounding:
    """GPTQ in the place of rounding to the nearest code.

    Attributes:
        images: Calibration images that it looks at.
    """

    images: int


@dataclass(frozen=True)
class Teacher:
    """The FP32 checkpoint as a teacher of the training that starts from it.

    Attributes:
        weight: Of the distance from the teacher's answers, see `qatval.train.distillation`.
        task: Of the detection loss beside it.
        hold_statistics: Whether BatchNorm keeps the statistics that it starts with and normalises
            by them in training too, as the teacher does, so that both compute the same function.
    """

    weight: float
    task: float
    hold_statistics: bool


@dataclass(frozen=True)
class Stabilizer:
    """What takes part in the gradient steps, beside the task loss.

    Attributes:
        implementation: ``"module:Class"``, a `qatval.quant.stabilizing.Stabilizer`.
        settings: Its keyword arguments.
    """

    implementation: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What a training is, as far as its methods settle it; methods with equal ones share it.

    Attributes:
        quantized: Whether weights are fake-quantized; if not, the training is an FP32 control.
        stabilizers: What takes part in the gradient steps.
        teacher: What is learned from beside the labels, or in their place; None: labels alone.
    """

    quantized: bool = True
    stabilizers: tuple[Stabilizer, ...] = ()
    teacher: Teacher | None = None


@dataclass(frozen=True)
class Method:
    """What is done to a training, beside it and after it, and called one thing in comparisons.

    Attributes:
        averaging: Take the moving average of the weights instead of the weights.
        correction: Learn QC afterwards; of an FP32 training on the convolutions that quantization
            would reach.
        statistics: What the BatchNorm statistics become afterwards, with nothing learned:
            ``"reestimated"`` (``bn``), or the FP32 checkpoint's ``"shifted"`` by what sets the
            model apart from it (``shift``).
        rounding: How the weights of a checkpoint are rounded that nothing trains; None: to the
            nearest code.
        recipe: The training, or None for post-training quantization (``ptq``).
    """

    name: str
    averaging: Averaging | None = None
    correction: Correction | None = None
    statistics: Statistics = "kept"
    rounding: Rounding | None = None
    recipe: Recipe | None = Recipe()

    def __post_init__(self) -> None:
        if self.averaging is not None and self.recipe is None:
            raise UsageError(
                f"method '{self.name}': without a training there is nothing to average"
            )
        if self.correction is not None and self.statistics != "kept":
            raise UsageError(
                f"method '{self.name}': QC keeps the BatchNorm statistics fixed, so it cannot be "
                "combined with other ones"
            )
        if self.recipe is not None and self.rounding:
            raise UsageError(
                f"method '{self.name}': only a checkpoint that nothing trains is rounded; say "
                "ptq+..."
            )
        if self.statistics == "shifted" and not self.quantized:
            raise UsageError(
                f"method '{self.name}': statistics are shifted by what quantization changes, and "
                "an FP32 training has none"
            )
        if not self.quantized and self.recipe and self.recipe.stabilizers:
            raise UsageError(
                f"method '{self.name}': an FP32 training has no quantization to stabilise"
            )

    @property
    def arm(self) -> Arm:
        """Which weights of a training the method takes."""
        return "raw" if self.averaging is None else "ema"

    @property
    def quantized(self) -> bool:
        """Whether weights are quantized at all."""
        return self.recipe is None or self.recipe.quantized


# What a part can be, in the order that names have them.
_KINDS = ("training", "rounding", "teacher", "stabilizer", "averaging", "statistics", "correction")


@functools.cache
def _presets() -> dict[str, Any]:
    """Return the shipped preset file, with the parts of installed packages added."""
    found = tomllib.loads((files("qatval.quant.methods") / "methods.toml").read_text("utf-8"))
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            text = (files(entry.module) / "methods.toml").read_text("utf-8")
            added = dict(tomllib.loads(text)["part"])
        except (ImportError, OSError, KeyError, ValueError) as error:
            raise UsageError(
                f"package '{entry.module}' says that it adds methods, but holds no methods.toml "
                f"with parts ({error}): mend or uninstall it"
            ) from error
        for name, part in added.items():
            if name in found["part"] or name == BASELINE or "+" in name:
                raise UsageError(f"package '{entry.module}' cannot name a method part '{name}'")
            if len(part.keys() & set(_KINDS)) != 1:
                raise UsageError(
                    f"part '{name}' of package '{entry.module}' must be one of {', '.join(_KINDS)}"
                )
            found["part"][name] = part
    return found


def method_names() -> tuple[str, ...]:
    """Return the methods under test: those that every comparison is about."""
    return tuple(_presets()["compared"])


def part_names() -> tuple[str, ...]:
    """Return the parts that names are made of, in the order that names have them."""
    return tuple(sorted(_presets()["part"], key=_rank))


def calibration_images() -> int:
    """Return how many training images QC learns on, and whatever it is compared with sees."""
    return int(_presets()["calibration_images"])


def parts(name: str) -> tuple[str, ...]:
    """Return the parts of a method's name.

    Raises:
        UsageError: If one is unknown or given twice, or they are not in order: one method has one
            name.
    """
    if name == BASELINE:
        return ()
    found = name.split("+")
    known = part_names()
    for part in found:
        if part not in known:
            raise UsageError(
                f"unknown method '{name}': expected {BASELINE}, or parts of {', '.join(known)} "
                "joined with +"
            )
    ordered = [part for part in known if part in found]
    if found != ordered:
        raise UsageError(f"method '{name}' is called '{'+'.join(ordered)}'")
    return tuple(found)


def method(name: str) -> Method:
    """Return what a name stands for.

    Raises:
        UsageError: If a part is unknown, or the parts cannot be combined.
    """
    chosen = [(part, _presets()["part"][part]) for part in parts(name)]
    averaging = [part["averaging"] for _, part in chosen if "averaging" in part]
    correction = [part["correction"] for _, part in chosen if "correction" in part]
    rounding = [part["rounding"] for _, part in chosen if "rounding" in part]
    statistics = [part["statistics"] for _, part in chosen if "statistics" in part]
    if len(statistics) > 1:
        raise UsageError(f"method '{name}': statistics cannot become two things")
    stabilizers = tuple(Stabilizer(**p["stabilizer"]) for _, p in chosen if "stabilizer" in p)
    teachers = [part["teacher"] for _, part in chosen if "teacher" in part]
    teacher = Teacher(**teachers[0]) if teachers else None
    kinds = {part["training"] for _, part in chosen if "training" in part}
    if kinds == {"none"} and not (stabilizers or teacher):
        recipe = None
    elif "none" in kinds:
        raise UsageError(f"method '{name}': ptq trains nothing, so nothing else can train with it")
    else:
        recipe = Recipe("float" not in kinds, stabilizers, teacher)
    return Method(
        name=name,
        averaging=Averaging(**averaging[0]) if averaging else None,
        correction=Correction(**correction[0]) if correction else None,
        statistics=statistics[0] if statistics else "kept",
        rounding=Rounding(**rounding[0]) if rounding else None,
        recipe=recipe,
    )


def with_controls(names: Iterable[str]) -> tuple[str, ...]:
    """Return methods followed by what tells their own effect from what any training would gain.

    Post-training quantization, plain and at its best; the same training in FP32 with and without
    the averaging and with the same correction; re-estimated BatchNorm statistics in QC's place.
    """
    wanted = list(names)
    controls = [*_presets()["rivals"], "fp32"]
    for name in wanted:
        if "distill" in parts(name):
            controls.append("fp32+distill")
        if "ema" in parts(name):
            controls.append(in_float(without(name, "qc")))
        if "qc" in parts(name):
            controls += [in_float(name), reestimated(name)]
    return (*wanted, *(name for name in dict.fromkeys(controls) if name not in wanted))


def reestimated(name: str) -> str:
    """Return the method that re-estimates statistics where this one learns QC."""
    return "+".join("bn" if part == "qc" else part for part in parts(name))


def in_float(name: str) -> str:
    """Return the method that does in FP32 what this one does beside and after the training."""
    alike = ("distill", "ema", "bn", "qc")
    return "+".join(["fp32", *(part for part in parts(name) if part in alike)])


def without(name: str, part: str) -> str:
    """Return the method that differs from this one in lacking a part."""
    return "+".join(other for other in parts(name) if other != part) or BASELINE


def _rank(part: str) -> tuple[int, int]:
    table = _presets()["part"]
    kind = next(index for index, kind in enumerate(_KINDS) if kind in table[part])
    return kind, list(table).index(part)
