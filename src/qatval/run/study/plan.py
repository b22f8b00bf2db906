"""What a study runs: its jobs, recorded before the first of them and for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, read_regular
from qatval.run.configuration import RunConfig, configure
from qatval.run.study.engines import Resources

PLAN_NAME = "study.json"
JOBS, RUNS = "jobs", "runs"


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """Methods that share a training, with one seed and one setting: what is placed as one.

    Attributes:
        name: Unique in the study, and the path of its folders: ``SETTING/seedN/FIRST-METHOD``.
        methods: Names; each gets a run root.
        seed: Of the subset and the training.
        arguments: What else `qatval.run.configuration.configure` is told, as JSON holds it: paths
            are absolute, ``primary`` is a list.
    """

    name: str
    methods: tuple[str, ...]
    seed: int
    arguments: dict[str, Any]

    def config(self, out: Path, cache_dir: Path | None = None) -> RunConfig:
        """Return what `qatval.run.runner.run` is to run."""
        arguments = dict(self.arguments)
        for name in ("coco_root", "checkpoint", "image_list", "gate_root"):
            if arguments.get(name) is not None:
                arguments[name] = Path(arguments[name])
        if "primary" in arguments:
            arguments["primary"] = tuple(arguments["primary"])
        return configure(
            methods=self.methods,
            seed=self.seed,
            run_root=self.run_root(out),
            cache_dir=cache_dir,
            **arguments,
        )

    def folder(self, out: Path) -> Path:
        """Return where its state and its log are, below a study's folder."""
        return out / JOBS / self.name

    def run_root(self, out: Path) -> Path:
        """Return the folder of its run roots; with one method, its run root."""
        return out / RUNS / self.name

    def run_roots(self, out: Path) -> dict[str, Path]:
        """Return the run root of each method."""
        root = self.run_root(out)
        if len(self.methods) == 1:
            return {self.methods[0]: root}
        return {method: root / method for method in self.methods}


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A study as its folder holds it.

    Attributes:
        created_at: When it was first planned.
        directory: From where relative paths, as those of official checkpoints, are found.
        resources: What each job takes.
        jobs: In the order in which they are placed.
        margin: Difference of mAP within which methods count as alike, None for no such question.
    """

    created_at: str
    directory: str
    resources: Resources
    jobs: tuple[Job, ...]
    margin: float | None = None


def write_plan(plan: Plan, out: Path) -> None:
    """Record a plan in a study's folder."""
    atomic_write(out / PLAN_NAME, msgspec.json.format(msgspec.json.encode(plan), indent=2))


def read_plan(out: Path) -> Plan:
    """Return the plan that a study's folder holds.

    Raises:
        QatvalError: If there is none, or none that can be read.
    """
    file = out / PLAN_NAME
    content = read_regular(file, 100_000_000, expected="the plan of a study")
    try:
        return msgspec.json.decode(content, type=Plan)
    except ValueError as error:
        raise QatvalError(f"{file} is no plan of a study ({error})") from error
