"""Validation scenarios: which runs are tried, and what a machine lacks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qatval import config as presets
from qatval.gate import decide
from qatval.methods import method_names, with_controls
from qatval.runs import collect

EMBEDDED = "shapes"
REAL = "coco2017"


@dataclass(frozen=True)
class Scenario:
    """One run to validate."""

    dataset: str
    variant: str
    method: str
    profile: str
    seed: int

    def __str__(self) -> str:
        """Return the test id."""
        return f"{self.variant}-{self.method}-{self.profile}-seed{self.seed}"

    @property
    def training(self) -> str:
        """Name of what the methods of this scenario are run together as."""
        return f"{self.dataset}-{self.variant}-{self.profile}-seed{self.seed}"


def embedded_scenarios(seeds: Sequence[int], controls: bool = False) -> list[Scenario]:
    """Return what runs on any machine: the embedded data, always under the smoke profile."""
    variants = presets.variant_names()
    embedded = [v for v in variants if presets.variant(v).embedded_checkpoint is not None]
    return _scenarios(EMBEDDED, embedded, "smoke", seeds, controls)


def coco_scenarios(profile: str, seeds: Sequence[int], controls: bool = False) -> list[Scenario]:
    """Return what runs on real COCO with a GPU."""
    return _scenarios(REAL, presets.variant_names(), profile, seeds, controls)


def _scenarios(
    dataset: str, variants: Sequence[str], profile: str, seeds: Sequence[int], controls: bool
) -> list[Scenario]:
    methods = method_names()
    return [
        Scenario(dataset, variant, method, profile, seed)
        for variant in variants
        for seed in seeds
        for method in (with_controls(methods) if controls else methods)
    ]


def missing_resources(
    scenario: Scenario, coco_root: Path, device: str | None, gate_root: Path | None
) -> list[str]:
    """Say what a COCO scenario needs and this machine lacks, each with the remedy.

    Looks at files first: torch is imported only when all else is there.
    """
    missing = []
    annotations = coco_root / "annotations" / "instances_val2017.json"
    if not annotations.is_file():
        missing.append(f"no COCO 2017 at {coco_root} (give its folder with --coco-root)")
    checkpoint = presets.variant(scenario.variant).checkpoint
    if not checkpoint.is_file():
        missing.append(f"no checkpoint {checkpoint} (qatval checkpoints fetch)")
    if presets.variant(scenario.variant).gated:
        runs, _ = collect([gate_root]) if gate_root else ([], [])
        if not decide(runs).open:
            missing.append(
                f"the stage gate for {scenario.variant} is closed (give the runs that open it "
                "with --gate-root; 'qatval gate' says what they lack)"
            )
    if not missing and device != "cpu":
        import torch

        if not torch.cuda.is_available():
            missing.append("no CUDA device (run on a GPU machine; 'qatval doctor' says more)")
    return missing
