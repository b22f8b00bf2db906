"""What is quantized, to how many bits, and how that is called in comparisons and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from qatval.core.errors import UsageError

FLOAT_MODE = "fp32"
"""The quantization mode of a float control."""

# Every layer's name is held against every pattern, and checkpoints bring their own.
_MAX_PATTERNS = 64
_MAX_PATTERN = 200  # characters

ScaleGranularity = Literal["per-tensor", "per-channel"]

Scaling = Literal["learned", "statistics"]
"""Where a weight scale comes from: a parameter (LSQ), or ``max|w|`` in every forward."""

StartScale = Literal["max", "mse", "lsq"]

Statistics = Literal["kept", "reestimated", "shifted"]
"""What BatchNorm statistics become on the calibration images."""


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
        patterns = (*self.boundary, *self.exempt)
        if len(patterns) > _MAX_PATTERNS or any(len(p) > _MAX_PATTERN for p in patterns):
            raise UsageError(
                f"layers are named by up to {_MAX_PATTERNS} patterns of up to {_MAX_PATTERN} "
                f"characters, got {len(patterns)}"
            )

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


_USUAL = ("per-channel", "learned", "from max shifted")


def quantization_label(quantization: Mapping[str, Any]) -> str:
    """Write a summary's quantization, e.g. ``"w4a16 per-channel learned from max shifted"``.

    After ``from`` stands the start: where scales began, what became of BatchNorm statistics. What
    an older tool did not record is not written, and neither is what no preset changes. A float
    control is ``"fp32"``.
    """
    mode = str(quantization["mode"])
    if mode == FLOAT_MODE:
        return mode
    said = [mode, quantization.get("scale"), quantization.get("scaling")]
    if quantization.get("narrow_range") is False:
        said.append("full range")
    if (without := quantization.get("scale_without_batchnorm")) not in (None, "per-channel"):
        said.append(f"{without} head")
    if isinstance(bits := quantization.get("boundary_bit_width"), int):
        said.append(f"boundary {bits} bit")
    if isinstance(start := quantization.get("start"), Mapping):
        said.append(f"from {start['scale']} {start['statistics']}")
    return " ".join(str(part) for part in said if part is not None)


def brief(precise: str) -> str:
    """Leave out of such a string what is usual: nothing is left of the default preset's."""
    left = f"{precise} "
    for usual in _USUAL:
        left = left.replace(f"{usual} ", "")
    left = left.strip()
    return "" if left == "w4a16" else left


def in_words(quantization: Mapping[str, Any]) -> str:
    """Say in words what is quantized, e.g. ``"4-bit weights, activations in float"``."""
    if quantization["mode"] == FLOAT_MODE:
        return "weights and activations in float"
    activations = quantization.get("activation_bit_width")
    also = "activations in float" if activations is None else f"{activations}-bit activations"
    boundary = quantization.get("boundary_bit_width")
    ends = f", first and last layers at {boundary} bit" if isinstance(boundary, int) else ""
    return f"{quantization['weight_bit_width']}-bit weights, {also}{ends}"
