"""What is run together: methods on one subset, with one precision and one seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qatval.core import presets, training_arguments
from qatval.core.errors import UsageError
from qatval.core.presets import Profile, Variant
from qatval.core.quantization import Quantization
from qatval.core.summary import SeriesPlan
from qatval.quant.methods import Method, method, method_names, primary_contrast
from qatval.quant.methods.averaging import Averaging
from qatval.quant.methods.part import Training
from qatval.quant.methods.rounding import Rounding


@dataclass(frozen=True)
class RunConfig:
    """What is run together: methods on one subset, with one precision and one seed.

    Attributes:
        methods: Each gets a run root; those with equal trainings share one.
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
        restart: Whether an interrupted run in the run root is begun anew instead of gone on with.
        fused: Whether training fake-quantizes all weights at once, which gives the same results
            sooner, or layer by layer through Brevitas.
        track: Whether the oscillation of the weights is measured, which changes no result.
        export: Whether what is delivered is exported to ONNX as well, and scored by runtimes.
        primary: The method and the reference whose difference the run is declared to tell.
        series: The plan of the series of seeds that the run is one of, None for none.
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
    restart: bool = False
    fused: bool = True
    track: bool = True
    export: bool = False
    primary: tuple[str, str] = field(default_factory=primary_contrast)
    series: SeriesPlan | None = None

    def __post_init__(self) -> None:
        if not self.methods:
            raise UsageError(f"no method given: expected one of {', '.join(method_names())}")
        names = [m.name for m in self.methods]
        if len(set(names)) != len(names):
            raise UsageError(f"a method is given twice: {', '.join(names)}")
        if self.primary[0] == self.primary[1]:
            raise UsageError(f"--primary must name two methods, got {self.primary[0]} twice")
        for name in self.primary:
            method(name)  # refuses one that is not known
        if len({m.averaging for m in self.methods} - {None}) > 1:
            raise UsageError(
                "methods with different averaging cannot share a training: run them one by one"
            )
        parts = [part for m in self.methods for part in m.parts]
        if self.quantization.scaling == "statistics" and any(
            isinstance(p, Rounding) for p in parts
        ):
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

    def trainings(self) -> list[tuple[Training | None, tuple[Method, ...]]]:
        """Return the trainings that the methods take, each with the methods that share it."""
        found: list[tuple[Training | None, list[Method]]] = []
        for one in self.methods:
            sharing = next(
                (methods for training, methods in found if training == one.training), None
            )
            if sharing is None:
                found.append((one.training, [one]))
            else:
                sharing.append(one)
        return [(training, tuple(methods)) for training, methods in found]

    @property
    def averaging(self) -> Averaging:
        """How the one average of a training is made, on which all methods agree.

        It is made for baseline too, where nobody looks at it: a training is the same whoever asks.
        """
        found = next((m.averaging for m in self.methods if m.averaging), method("ema").averaging)
        assert found is not None
        return found

    def settled(self, chosen: Method) -> Method:
        """Return one of the methods with the settings that the profile has for its parts."""
        return chosen.under(self.profile)


def configure(
    *,
    variant: str,
    methods: Sequence[str],
    profile: str,
    run_root: Path,
    coco_root: Path,
    seed: int = 0,
    checkpoint: Path | None = None,
    quantization: str = "w4a16",
    precision: Mapping[str, Any] | None = None,
    schedule: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    **options: Any,
) -> RunConfig:
    """Settle a run from names: the dataset decides which presets and which checkpoint apply.

    Args:
        variant, methods, profile: Names of presets.
        run_root: The run's folder.
        coco_root: The dataset; the embedded one is recognised by its manifest.
        seed: Seed of the run.
        checkpoint: Replaces the variant's own.
        quantization: Name of a preset.
        precision: Fields of `Quantization` that replace what the preset says; of ``start`` a
            mapping of those of `Start`.
        schedule: What the profile is called with ``overrides``: its own name, a hyphen and this.
        overrides: Training arguments (`qatval.core.training_arguments`) beside the profile's, or
            in their place.
        dataset: Whose presets apply, None for what lies in ``coco_root``.
        options: Fields of `Profile` that replace what the preset says (None keeps it), and further
            fields of `RunConfig`.

    Raises:
        UsageError: If there is no preset of a name, or a value is out of range.
        QatvalError: If the dataset is not there.
    """
    from qatval.data.subset import presets_of

    dataset = dataset or presets_of(coco_root)
    chosen = presets.variant(variant)
    of_profile = {field.name for field in dataclasses.fields(Profile)} & options.keys()
    replaced = {name: options.pop(name) for name in of_profile}
    settled = replace(
        presets.profile(dataset, profile),
        **{name: value for name, value in replaced.items() if value is not None},
    )
    if overrides:
        training_arguments.refuse_unfit(overrides)
        name = settled.name if schedule is None else f"{settled.name}-{schedule}"
        settled = replace(settled, name=name, overrides={**settled.overrides, **overrides})
    return RunConfig(
        variant=chosen,
        methods=tuple(method(name) for name in methods),
        profile=settled,
        quantization=_quantization(
            presets.quantization(quantization, chosen.detector), precision or {}
        ),
        seed=seed,
        run_root=run_root,
        coco_root=coco_root,
        checkpoint=checkpoint or chosen.checkpoint_for(dataset),
        **options,
    )


def _quantization(preset: Quantization, replaced: Mapping[str, Any]) -> Quantization:
    start = replace(preset.start, **replaced.get("start", {}))
    return replace(preset, **{**replaced, "start": start})
