"""What a part of a method is: the base class of every kind.

A kind is one subclass in one file. It says which training it needs, what it does after it, what it
has to be compared with, what it records, and how reports describe it. Nothing here imports torch
before there is a model to work on: method names are listed and refused at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from qatval.core.errors import UsageError, quoted
from qatval.core.method_record import MethodRecord
from qatval.core.presets import Profile
from qatval.core.quantization import Quantization

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qatval.quant.methods import Method

Weights = Literal["raw", "ema"]
"""What is scored along a training: the weights themselves, or their moving average."""


@dataclass(frozen=True)
class Training:
    """A training, as far as methods settle it; methods with equal ones share it.

    Attributes:
        quantized: Whether weights are fake-quantized; if not, the training is an FP32 control.
        stabilizers: Parts that take part in the gradient steps.
        teacher: The part that teaches beside the labels, or in their place; None: labels alone.
    """

    quantized: bool = True
    stabilizers: tuple[Any, ...] = ()
    teacher: Any | None = None


@dataclass(frozen=True)
class Effect:
    """A gain and what it has to exceed, each as a method's name and its reference's.

    Attributes:
        kind: As comparisons record it, e.g. ``"averaging"``.
        what: The subject of sentences about the gain, e.g. ``"averaging"``.
        target: Where it should do more than for FP32, e.g. ``" for the quantized training"``; empty
            where the control is not an FP32 training.
        control_does: Beginning of what the control gains, e.g. ``"in FP32 averaging"``.
        control_is: What the control is, e.g. ``"averaging by itself"``.
        plural: Whether ``control_does`` ends with a plural.
    """

    kind: str
    gain: tuple[str, str]
    control: tuple[str, str]
    what: str
    target: str
    control_does: str
    control_is: str
    plural: bool = False


class CalibrationBatches(Protocol):
    """The calibration images: those that QC learns on, and whatever it is compared with sees."""

    count: int
    device: Any

    def __len__(self) -> int:
        """Return the number of batches."""

    def pixels(self) -> Iterator[Tensor]:
        """Yield batches ``(batch, 3, imgsz, imgsz)`` in [0, 1], always the same ones."""


@dataclass(frozen=True)
class Context:
    """What a part may use when it works on a model.

    Attributes:
        images: The calibration images, on the device that they are to be used on.
        reference: The FP32 checkpoint, on that device.
        quantization: Of the run.
        raw: Returns the weights without averaging, frozen to codes.
        reestimated: Returns the method's frozen model with the BatchNorm statistics of the images
            alone, made once for all methods that share it.
        learn_correction: Learns QC; see `qatval.train.calibration.learn_correction`.
        stage: Says what is done now, and in how many steps.
        step: Says how many of them are done.
    """

    images: CalibrationBatches
    reference: nn.Module
    quantization: Quantization
    raw: Callable[[], nn.Module]
    reestimated: Callable[[], nn.Module]
    learn_correction: Callable[..., Any]
    stage: Callable[..., None]
    step: Callable[..., None]


@dataclass(frozen=True)
class Part:
    """One part of a method, e.g. ``ema`` of ``ema+qc``; the base class changes nothing.

    Attributes:
        name: As method names have it.
    """

    name: str

    kind: ClassVar[str]
    """Key of its table in ``methods.toml``."""
    is_control: ClassVar[bool] = False
    """Whether a method with this part is there to be compared with, and not under test."""
    works_in_float: ClassVar[bool] = False
    """Whether the FP32 control of a method has this part too."""
    changes_model: ClassVar[bool] = False
    """Whether `after` or `round` gives another model: its value then ends the run's series."""
    value_before: ClassVar[str | None] = None
    """Metric that records the value before this part's change."""
    stages: ClassVar[tuple[str, ...]] = ()
    """Stages of a run in which it makes the model; what they take is a method's cost."""

    def as_preset(self) -> dict[str, Any]:
        """Return the part's settings, as a table of ``methods.toml`` has them."""
        return {name: value for name, value in asdict(self).items() if name != "name"}

    def under(self, profile: Profile) -> Part:
        """Return the part with the settings that a profile has for it."""
        return self

    def training(self, before: Training | None) -> Training | None:
        """Return the training that the method needs, given what the parts before this one need.

        Raises:
            UsageError: If the part makes no sense with that training.
        """
        return before

    def check(self, others: Sequence[Part]) -> None:
        """Refuse the other parts of a method that this one cannot be combined with.

        Raises:
            UsageError: If there is one.
        """

    def round(self, model: nn.Module, context: Context) -> nn.Module:
        """Return a fake-quantized checkpoint, that nothing trains, with weights rounded anew."""
        return model

    def after(
        self, model: nn.Module, context: Context, record: MethodRecord
    ) -> tuple[nn.Module, MethodRecord]:
        """Work on the model after the training.

        Args:
            model: Weights frozen to integer codes, or float ones; to be left as it is.
            context: What to work with.
            record: What is recorded of the method so far.

        Returns:
            The model to go on with, and the record with what this part adds to it.
        """
        return model, record

    def announce(self, record: MethodRecord) -> MethodRecord:
        """Return the record with what is known of this part before the run."""
        return record

    def trained(self, record: MethodRecord, training: Any) -> MethodRecord:
        """Return the record with what a `qatval.train.trajectory.Trajectory` says of this part."""
        return record

    def controls(self, method: Method) -> list[str]:
        """Return the names of methods that a method with this part is to be compared with."""
        return []

    def effects(self, method: Method) -> list[Effect]:
        """Return what the method's gain over the same without this part, its last, must exceed."""
        return []

    @classmethod
    def describe(cls, record: MethodRecord) -> Iterator[str]:
        """Yield what reports say of parts of this kind, from the record alone."""
        return iter(())


@dataclass(frozen=True)
class ClassPart(Part):
    """A part that is a class of this package or another one.

    Attributes:
        implementation: ``"module:Class"``.
        settings: Keyword arguments of the class.
    """

    implementation: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self, base: type[Any], *arguments: Any) -> Any:
        """Import the class and return an instance of it.

        Args:
            base: What it must be a subclass of.
            arguments: Positional arguments before the settings.

        Raises:
            UsageError: If there is no such class, or it does not take the settings.
        """
        module, _, name = self.implementation.partition(":")
        try:
            found: Any = getattr(importlib.import_module(module), name)
        except Exception as error:  # importing a package's module runs it
            raise UsageError(
                f"cannot import the method '{self.implementation}': {quoted(str(error))}; a preset "
                "names a class as 'module:Class'"
            ) from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise UsageError(
                f"the method '{self.implementation}' is no subclass of {base.__name__}"
            )
        try:
            return found(*arguments, **self.settings)
        except TypeError as error:
            raise UsageError(
                f"the method '{self.implementation}' does not take its settings: {error}"
            ) from error


def trained_with(before: Training | None, **changes: Any) -> Training:
    """Return a training with changes; refuse a method that trains nothing."""
    if before is None:
        raise UsageError("ptq trains nothing, so nothing else can train with it")
    return replace(before, **changes)
