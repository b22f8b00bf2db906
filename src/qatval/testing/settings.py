"""What holds for the validation of a session, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qatval.testing.scenarios import RealData


@dataclass(frozen=True)
class Settings:
    """What holds for the validation in every worker: the options of the same names, and more.

    Attributes:
        real_data: Photographs and a checkpoint for the CPU.
        session_dir: Holds the session's runs, their locks and the comparison.
        session: Tells this session from others that used the same folder.
    """

    profile: str
    seeds: tuple[int, ...]
    coco_root: Path
    device: str | None
    runs_per_gpu: int
    gate_root: Path | None
    strict_resources: bool
    with_controls: bool
    update_thresholds: bool
    launcher: str | None
    launcher_config: Path | None
    real_data: RealData
    session_dir: Path
    session: str
