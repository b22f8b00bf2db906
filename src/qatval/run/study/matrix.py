"""What a study asks for: variants, quantizations, trainings, seeds and methods, each with each."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType, field
from msgspec.structs import asdict

from qatval.core import presets, training_arguments
from qatval.core.errors import UsageError, quoted
from qatval.core.formatting import nearest
from qatval.core.quantization import ScaleGranularity, Scaling, StartScale, Statistics
from qatval.quant.methods import method, primary_contrast
from qatval.run.study.launching import Launching

EMBEDDED = "embedded"
"""What a study calls the embedded dataset."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_NARROWING = ("variants", "quantizations", "methods", "seeds")

_Positive = Annotated[int, Meta(ge=1)]
_Bits = Annotated[int, Meta(ge=2, le=8)]

FIELDS = {
    "weight_bits": "weight_bit_width",
    "activation_bits": "activation_bit_width",
    "boundary_bits": "boundary_bit_width",
    "start_scale": "start.scale",
    "start_statistics": "start.statistics",
}
"""By key of `Precision` what `qatval.core.quantization.Quantization` calls it, where it differs."""


class Precision(msgspec.Struct, frozen=True, omit_defaults=True):
    """A quantization: a preset and what replaces parts of it, as the options of ``qatval run``.

    What is not given is the preset's; of activations None stands for float.
    """

    quantization: str = "w4a16"
    weight_bits: _Bits | UnsetType = UNSET
    activation_bits: _Bits | UnsetType | None = UNSET
    boundary_bits: _Bits | UnsetType = UNSET
    scale: ScaleGranularity | UnsetType = UNSET
    scaling: Scaling | UnsetType = UNSET
    start_scale: StartScale | UnsetType = UNSET
    start_statistics: Statistics | UnsetType = UNSET

    def arguments(self) -> dict[str, Any]:
        """Return what `qatval.run.configuration.configure` is told of it."""
        given = {name: value for name, value in asdict(self).items() if value is not UNSET}
        preset = given.pop("quantization")
        fields: dict[str, Any] = {}
        for name, value in given.items():
            group, _, last = FIELDS.get(name, name).rpartition(".")
            (fields.setdefault(group, {}) if group else fields)[last] = value
        return {"quantization": preset, **({"precision": fields} if fields else {})}


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """A way of training: a profile and what replaces parts of it, and what is trained so.

    Attributes:
        profile: None for the study's.
        overrides: Training arguments beside the profile's, or in their place.
        checkpoint, image_list: Absolute paths.
        export: Whether what is delivered is exported to ONNX as well.
        variants, quantizations, methods, seeds: Those of the study that are trained so; None for
            all of them.
    """

    profile: str | None = None
    epochs: _Positive | None = None
    batch: _Positive | None = None
    imgsz: _Positive | None = None
    train_images: _Positive | None = None
    val_images: _Positive | None = None
    batchnorm: presets.BatchNorm | None = None
    overrides: dict[str, Any] = {}
    checkpoint: str | None = None
    image_list: str | None = None
    device: str | None = None
    amp: bool | None = None
    workers: Annotated[int, Meta(ge=0)] | None = None
    export: bool | None = None
    variants: tuple[str, ...] | None = None
    quantizations: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what `qatval.run.configuration.configure` is told of it."""
        given = asdict(self)
        return {
            name: value
            for name, value in given.items()
            if name not in _NARROWING and value is not None and value != {}
        }


class Study(Launching, frozen=True, kw_only=True):
    """A matrix of runs.

    Attributes:
        source: What messages call it, the path of its file.
        methods: Controls among them.
        dataset: Absolute path of a folder in COCO 2017's layout; `EMBEDDED` for the embedded
            dataset, which is drawn into the study's folder.
        profile: Of the trainings that name none.
        primary: The method and the reference whose difference the study is made to tell.
        margin: Difference of mAP within which methods count as alike, None for no such question.
        quantizations, trainings: By the names that folders have; without a training there is one,
            named like the profile.
        gate_root: Absolute path of the runs that open the stage gate of a variant behind it.

    Raises:
        UsageError: From the constructor, for what cannot be; it begins with the key.
    """

    source: str = "the study"
    variants: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    dataset: str
    profile: str | None = None
    primary: tuple[str, str] = field(default_factory=primary_contrast)
    margin: Annotated[float, Meta(gt=0, lt=1)] | None = None
    quantizations: dict[str, Precision] = field(default_factory=lambda: {"w4a16": Precision()})
    trainings: dict[str, Schedule] = field(default_factory=dict)
    gate_root: str | None = None

    def __post_init__(self) -> None:
        """Refuse what names nothing, or one thing twice."""
        super().__post_init__()
        for key, names in (("quantizations", self.quantizations), ("trainings", self.trainings)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise UsageError(
                        f"{key}: {quoted(name)} names a folder: expected a-z, 0-9, '.', '_' and "
                        "'-', up to 40"
                    )
        for key, values in (("quantizations", self.quantizations), *_lists(self, "")):
            _refuse_repeated(key, values)
        _refuse_unknown("variants", self.variants, presets.variant)
        _refuse_unknown("methods", self.methods, method)
        for name in self.primary:
            _refuse_unknown("primary", [name], method)
            if name not in self.methods and self.primary != primary_contrast():
                raise UsageError(f"primary: {name} is none of the methods")
        if not self.trainings and self.profile is None:
            raise UsageError("profile: missing; name one, or trainings that have one each")
        for name, schedule in self.trainings.items():
            self._check(schedule, f"trainings.{name}.")

    def _check(self, schedule: Schedule, place: str) -> None:
        if schedule.profile is None and self.profile is None:
            raise UsageError(f"{place}profile: missing, and the study names none")
        for key, values in _lists(schedule, place):
            _refuse_repeated(key, values)
            known = getattr(self, key.removeprefix(place))
            for value in values:
                if value not in known:
                    near = nearest(str(value), map(str, known))
                    raise UsageError(f"{key}: {value} is none of the study's{near}")
        if schedule.checkpoint is not None and len(schedule.variants or self.variants) > 1:
            raise UsageError(
                f"{place}checkpoint: is of one variant; name that in {place}variants, and others "
                "in another training"
            )
        gpus = self.resources.get("gpus", 0)
        if schedule.device is not None and (schedule.device == "cpu") != (gpus == 0):
            expected = "a GPU" if gpus else "cpu"  # else jobs share a GPU that nobody counts
            raise UsageError(
                f"{place}device: expected {expected}, as resources.gpus is {gpus}, "
                f"got {schedule.device}"
            )
        try:
            training_arguments.refuse_unfit(schedule.overrides)
        except UsageError as error:
            raise UsageError(f"{place}overrides.{error}") from error

    def schedules(self) -> dict[str, Schedule]:
        """Return the trainings by name, each with its profile."""
        named = self.trainings or {str(self.profile): Schedule()}
        return {
            name: msgspec.structs.replace(schedule, profile=schedule.profile or self.profile)
            for name, schedule in named.items()
        }


def _lists(table: Study | Schedule, place: str) -> Iterator[tuple[str, Collection[Any]]]:
    """Yield the lists that a table gives, each with its key."""
    for name in _NARROWING:
        values = getattr(table, name)
        if values is not None and not isinstance(values, Mapping):
            yield f"{place}{name}", values


def _refuse_repeated(key: str, values: Collection[Any]) -> None:
    if not values:
        raise UsageError(f"{key}: expected at least one")
    seen = set()
    for value in values:
        if value in seen:
            raise UsageError(f"{key}: {value} is given twice")
        seen.add(value)


def _refuse_unknown(key: str, names: Collection[str], choose: Callable[[str], object]) -> None:
    for name in names:
        try:
            choose(name)
        except UsageError as error:
            raise UsageError(f"{key}: {error}") from error
