"""Validation scenarios: which runs are tried, and what a machine lacks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qatval.analysis.gate import decide_from
from qatval.core import presets
from qatval.quant.methods import method_names, with_controls

EMBEDDED = presets.EMBEDDED
COCO = "coco2017"
PHOTOGRAPHS = "photographs"
"""Any dataset in COCO's layout and a checkpoint for it, small enough for a CPU."""

PHOTOGRAPHS_IMGSZ = 320
REAL_DATA_VARIABLE = "QATVAL_REAL_DATA"
_CHECKPOINTS = (".safetensors", ".pt")


@dataclass(frozen=True)
class Scenario:
    """One run to validate.

    Attributes:
        dataset: `EMBEDDED`, `COCO` or `PHOTOGRAPHS`.
    """

    dataset: str
    variant: str
    method: str
    profile: str
    seed: int

    def __str__(self) -> str:
        """Return the test id."""
        where = f"-{self.dataset}" if self.dataset == PHOTOGRAPHS else ""
        return f"{self.variant}-{self.method}-{self.profile}-seed{self.seed}{where}"

    @property
    def training(self) -> str:
        """Name of what the methods of this scenario are run together as."""
        return f"{self.dataset}-{self.variant}-{self.profile}-seed{self.seed}"


def scenarios(dataset: str, profile: str, seeds: Sequence[int], controls: bool) -> list[Scenario]:
    """Return what is tried on a dataset.

    On real COCO every variant with the profile, which takes a GPU. What a CPU can do is under the
    smoke profile: the variants with an embedded checkpoint on the embedded data, the smallest one
    on photographs.
    """
    variants = presets.validated_variants()
    if dataset == EMBEDDED:
        variants = tuple(v for v in variants if presets.variant(v).embedded_checkpoint)
    elif dataset == PHOTOGRAPHS:
        variants = variants[:1]
    return [
        Scenario(dataset, variant, method, profile if dataset == COCO else "smoke", seed)
        for variant in variants
        for seed in seeds
        for method in (with_controls(method_names()) if controls else method_names())
    ]


@dataclass(frozen=True)
class RealData:
    """A folder with a dataset in COCO's layout and a checkpoint that was trained on it.

    Attributes:
        folder: Holds both. The dataset is the folder itself or one below it, the checkpoint of a
            variant is called as the official file is, with anything after it
            (``yolov10n*.safetensors`` or ``yolov10n*.pt``).
    """

    folder: Path

    @property
    def coco_root(self) -> Path | None:
        """The dataset, None if there is none."""
        roots = [self.folder, *sorted(self.folder.glob("*/"))]
        return next((root for root in roots if _holds_coco(root)), None)

    def checkpoint(self, variant: str) -> Path | None:
        """Return a variant's checkpoint, None if there is none."""
        stem = presets.variant(variant).checkpoint.stem
        found = (p for p in sorted(self.folder.glob(f"{stem}*")) if p.suffix in _CHECKPOINTS)
        return next(found, None)

    def missing(self, variant: str) -> list[str]:
        """Say what a scenario on photographs lacks, with the remedy."""
        if self.coco_root is not None and self.checkpoint(variant) is not None:
            return []
        lacking = "dataset in COCO's layout" if self.coco_root is None else "checkpoint"
        return [
            f"no {lacking} in {self.folder} (name a folder with photographs in COCO's layout and a "
            f"{presets.variant(variant).checkpoint.stem}*.pt with {REAL_DATA_VARIABLE})"
        ]


def missing_resources(
    scenario: Scenario, coco_root: Path, gate_root: Path | None, *, gpu: bool
) -> list[str]:
    """Say what a COCO scenario needs and this machine lacks, each with the remedy.

    Looks at files first: torch is imported only when all else is there, and for a ``gpu``.
    """
    missing = []
    if not _holds_coco(coco_root):
        missing.append(f"no COCO 2017 at {coco_root} (give its folder with --coco-root)")
    variant = presets.variant(scenario.variant)
    if not variant.checkpoint.is_file():
        missing.append(f"no checkpoint {variant.checkpoint} (qatval checkpoints fetch)")
    if variant.requires:
        roots = [gate_root] if gate_root else []
        if not decide_from(roots, variant.requires).yolo10m_allowed:
            missing.append(
                f"the stage gate for {scenario.variant} is closed (give the runs that open it "
                "with --gate-root; 'qatval gate' says what they lack)"
            )
    if not missing and gpu:
        import torch

        if not torch.cuda.is_available():
            missing.append("no CUDA device (run on a GPU machine; 'qatval doctor' says more)")
    return missing


def _holds_coco(root: Path) -> bool:
    from qatval.data.coco import CocoFiles

    return CocoFiles.of(root, "val").annotations.is_file()
