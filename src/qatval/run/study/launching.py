"""Which engine places the attempts of a study: by the name that ``--launcher`` has for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from qatval.core.errors import UsageError
from qatval.run.study.engines import Engine, Resources

LAUNCHERS = ("local", "slurm", "ray")


class Launching(msgspec.Struct, frozen=True, kw_only=True):
    """What the tables of a file say of where runs take place.

    Attributes:
        resources: What each job takes, as far as it is said: fields of
            `qatval.run.study.engines.Resources`.
        slurm: What submitit is told beside that, without the prefix ``slurm_``.
        ray: ``address`` of the cluster.

    Raises:
        UsageError: From the constructor, for what cannot be; it begins with the key.
    """

    resources: dict[str, Any] = {}
    slurm: dict[str, Any] = {}
    ray: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuse a number of GPUs that is neither a share of one nor a whole number."""
        gpus = self.resources.get("gpus", 0)
        if gpus > 1 and gpus != int(gpus):
            raise UsageError(f"resources.gpus: expected a share of one or whole ones, got {gpus}")


def launched(
    launcher: str, resources: Resources, out: Path, told: Launching, jobs: int | None = None
) -> tuple[Engine, int]:
    """Return where runs take place, and how many side by side as far as that is known.

    Args:
        launcher: One of `LAUNCHERS`.
        resources: What each job takes.
        out: The study's folder.
        told: What a cluster is told beside that.
        jobs: The most that run at a time on this machine, None for as many as it carries.

    Raises:
        QatvalError: If this machine has no such engine, or the engine cannot do what it is told.
    """
    if launcher == "slurm":
        from qatval.run.study.engines.slurm import SlurmEngine

        return SlurmEngine(resources, out, told.slurm), 1
    if launcher == "ray":
        from qatval.run.study.engines.ray import RayEngine

        return RayEngine(resources, told.ray.get("address")), 1
    from qatval.run.study.engines.local import LocalEngine

    local = LocalEngine(resources, jobs)
    return local, len(local.places)
