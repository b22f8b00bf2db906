"""Stabilisation methods and their controls: names, and what they stand for.

A name joins parts with ``+``: ``baseline`` has none, ``dampen+ema+qc`` dampens oscillations in
training, takes the moving average and corrects it. Parts are tables of ``methods.toml`` and of the
same file in any installed package that names itself in the entry-point group ``qatval.methods``;
the key of a part's table is its kind, a class of `KINDS`. What is installed is trusted as code is;
a package that cannot be used is named, and in nobody's way. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

from qatval.core.errors import UsageError, quoted
from qatval.core.method_record import BatchNormRecord, EmaRecord, MethodRecord, QcRecord
from qatval.core.presets import Profile
from qatval.quant.methods.averaging import Averaging
from qatval.quant.methods.batchnorm import OtherStatistics, Reestimated, Shifted
from qatval.quant.methods.correction import Correction
from qatval.quant.methods.in_float import InFloat
from qatval.quant.methods.part import ClassPart, Part, Training, Weights
from qatval.quant.methods.post_training import PostTrainingPart
from qatval.quant.methods.rounding import Rounding
from qatval.quant.methods.stabilizer import StabilizerPart
from qatval.quant.methods.teacher import Teacher
from qatval.quant.methods.untrained import Untrained

BASELINE = "baseline"
ENTRY_POINTS = "qatval.methods"

KINDS: tuple[type[Part], ...] = (
    Untrained,
    InFloat,
    Rounding,
    Teacher,
    StabilizerPart,
    Averaging,
    Reestimated,
    Shifted,
    Correction,
    PostTrainingPart,
)
"""What a part can be, in the order that names have them and models are worked on."""


@dataclass(frozen=True)
class Method:
    """How to train, average and post-process: one row of a comparison.

    Attributes:
        parts: In the order of `KINDS`; none for ``baseline``.
    """

    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        try:
            for number, part in enumerate(self.parts):
                part.check(self.parts[:number])
            _ = self.training
        except UsageError as error:
            raise UsageError(f"method '{self.name}': {error}") from error

    @cached_property
    def name(self) -> str:
        """The parts' names joined with ``+``."""
        return "+".join(part.name for part in self.parts) or BASELINE

    @cached_property
    def training(self) -> Training | None:
        """The training that the method needs, None for post-training quantization."""
        training: Training | None = Training()
        for part in self.parts:
            training = part.training(training)
        return training

    @property
    def averaging(self) -> Averaging | None:
        """How the weights are averaged, None if they are taken as they are."""
        return next((part for part in self.parts if isinstance(part, Averaging)), None)

    @property
    def weights(self) -> Weights:
        """Which weights of a training the method takes."""
        return "raw" if self.averaging is None else "ema"

    @property
    def quantized(self) -> bool:
        """Whether weights are quantized at all."""
        return self.training is None or self.training.quantized

    @property
    def is_control(self) -> bool:
        """Whether the method is there to be compared with, and not under test."""
        return any(part.is_control for part in self.parts)

    def without(self, name: str) -> Method:
        """Return the method that lacks the part of this name."""
        return Method(tuple(part for part in self.parts if part.name != name))

    def replaced(self, name: str, other: Part) -> Method:
        """Return the method that has another part in the place of the one of this name."""
        return Method(tuple(other if part.name == name else part for part in self.parts))

    def up_to(self, part: Part) -> Method:
        """Return the method that ends with this part."""
        return Method(self.parts[: self.parts.index(part) + 1])

    def in_float(self) -> Method:
        """Return the method that does in FP32 what this one does beside and after the training."""
        return Method((InFloat("fp32"), *(part for part in self.parts if part.works_in_float)))

    def under(self, profile: Profile) -> Method:
        """Return the method with the settings that a profile has for its parts."""
        return Method(tuple(part.under(profile) for part in self.parts))

    def settings(self) -> dict[str, Any]:
        """Return what the method was made with, as summaries record it."""
        given = {part.kind: part.as_preset() for part in self.parts}
        training = self.training and {
            "quantized": self.training.quantized,
            "stabilizers": [part.as_preset() for part in self.training.stabilizers],
            "teacher": given.get("teacher"),
        }
        return {
            "name": self.name,
            "averaging": given.get("averaging"),
            "correction": given.get("correction"),
            "statistics": next(
                (p.kind for p in self.parts if isinstance(p, OtherStatistics)), "kept"
            ),
            "rounding": given.get("rounding"),
            "recipe": training,
        }

    def announced(self) -> MethodRecord:
        """Return what is known before the run."""
        record = MethodRecord(
            self.name,
            ema=EmaRecord(False, None, None),
            qc=QcRecord(False, None, None, None),
            bn=BatchNormRecord(False, "kept", None),
            teacher=None,
            rounding=None,
            training="quantized",
            stabilizers=(),
        )
        for part in self.parts:
            record = part.announce(record)
        return record


def describe(record: MethodRecord) -> Iterator[str]:
    """Yield what reports say of a method, a line each, from its record alone."""
    for kind in KINDS:
        yield from kind.describe(record)


@dataclass(frozen=True)
class _Catalogue:
    """Every part that there is.

    Attributes:
        parts: By name, in the order that method names have them.
        left_out: A line for each installed package whose parts cannot be used.
    """

    parts: dict[str, Part]
    left_out: tuple[str, ...]


@functools.cache
def _presets() -> dict[str, Any]:
    """Return the shipped preset file."""
    return tomllib.loads((files("qatval.quant.methods") / "methods.toml").read_text("utf-8"))


@functools.cache
def _catalogue() -> _Catalogue:
    """Return the shipped parts and those of installed packages, which must not be in the way."""
    found = {name: _part(name, table) for name, table in _presets()["part"].items()}
    left_out = []
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            found |= _parts_of(entry.module, found)
        except (Exception, SystemExit) as error:  # importing a package runs it
            said = (
                str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            )
            left_out.append(
                f"package {quoted(entry.module)} adds no methods ({quoted(said)}): mend or "
                "uninstall it"
            )
    parts = {n: p for kind in KINDS for n, p in found.items() if type(p) is kind}
    return _Catalogue(parts, tuple(left_out))


def _parts_of(package: str, taken: Mapping[str, Part]) -> dict[str, Part]:
    """Return the parts of an installed package; raise whatever importing it and its file raise."""
    tables = tomllib.loads((files(package) / "methods.toml").read_text("utf-8"))["part"]
    for name in tables:
        if name in taken or name == BASELINE or "+" in name:
            raise UsageError(f"it cannot name a part '{name}'")
    return {name: _part(name, table) for name, table in tables.items()}


def _part(name: str, table: Mapping[str, Any]) -> Part:
    kinds = [kind for kind in KINDS if kind.kind in table]
    if len(kinds) != 1:
        raise UsageError(
            f"its part '{name}' must be one of {', '.join(kind.kind for kind in KINDS)}"
        )
    return kinds[0](name, **table[kinds[0].kind])


def method_names() -> tuple[str, ...]:
    """Return the methods under test: those that every comparison is about."""
    return tuple(_presets()["compared"])


def primary_contrast() -> tuple[str, str]:
    """Return the method and the reference that runs are made to tell apart by default."""
    name, reference = _presets()["primary"]
    return str(name), str(reference)


def part_names() -> tuple[str, ...]:
    """Return the parts that names are made of, in the order that names have them."""
    return tuple(_catalogue().parts)


def packages_left_out() -> tuple[str, ...]:
    """Return a line for each installed package that is to add parts, and whose cannot be used."""
    return _catalogue().left_out


def implementations() -> frozenset[str]:
    """Return the classes, as ``"module:Class"``, that parts may be: no others are imported."""
    parts = _catalogue().parts.values()
    return frozenset(part.implementation for part in parts if isinstance(part, ClassPart))


def calibration_images() -> int:
    """Return how many training images QC learns on, and whatever it is compared with sees."""
    return int(_presets()["calibration_images"])


def method(name: str) -> Method:
    """Return what a name stands for.

    Raises:
        UsageError: If a part is unknown (packages that should add some are named) or given twice,
            the parts are not in order (one method has one name), or they cannot be combined.
    """
    if name == BASELINE:
        return Method()
    found, known = name.split("+"), _catalogue().parts
    for part in found:
        if part not in known:
            raise UsageError(
                f"unknown method {quoted(name)}: expected {BASELINE}, or parts of "
                f"{'; '.join((', '.join(known) + ' joined with +', *packages_left_out()))}"
            )
    ordered = [part for part in known if part in found]
    if found != ordered:
        raise UsageError(f"method '{name}' is called '{'+'.join(ordered)}'")
    return Method(tuple(known[part] for part in found))


def with_controls(names: Iterable[str]) -> tuple[str, ...]:
    """Return methods followed by what tells their own effect from what any training would gain.

    Post-training quantization, plain and at its best; the same training in FP32; and what each
    part names as its controls.
    """
    wanted = list(names)
    controls = [*_presets()["rivals"], "fp32"]
    for name in wanted:
        found = method(name)
        controls += [control for part in found.parts for control in part.controls(found)]
    return (*wanted, *(name for name in dict.fromkeys(controls) if name not in wanted))


def making_stages() -> set[str]:
    """Return the stages of a run in which parts make a method's model."""
    return {stage for kind in KINDS for stage in kind.stages}
