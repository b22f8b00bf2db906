"""What a study runs: its jobs, recorded before the first of them and for good."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, read_regular
from qatval.core.locks import exclusive
from qatval.core.presets import EMBEDDED
from qatval.run.claim import Claim
from qatval.run.configuration import RunConfig, configure
from qatval.run.study.engines import Resources

PLAN_NAME = "study.json"
JOBS, RUNS = "jobs", "runs"
_LARGEST = 200_000_000  # bytes; a job takes less than a thousand
_PATHS = ("coco_root", "checkpoint", "image_list", "gate_root")


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """Methods that share a training, with one seed and one setting: what is placed as one.

    Attributes:
        name: Unique in the study, and the path of its folders:
            ``VARIANT-TRAINING-QUANTIZATION/seedN/FIRST-METHOD``.
        methods: Names; each gets a run root.
        seed: Of the subset and the training.
        arguments: What else `qatval.run.configuration.configure` is told, as JSON holds it: paths
            are absolute, ``primary`` is a list. Without a ``coco_root`` the dataset is the embedded
            one, in the study's folder.
        training, quantization: What the study calls them.
    """

    name: str
    methods: tuple[str, ...]
    seed: int
    arguments: dict[str, Any]
    training: str = ""
    quantization: str = ""

    def config(self, out: Path, cache_dir: Path | None = None) -> RunConfig:
        """Return what `qatval.run.runner.run` is to be given; the data need not be there.

        Raises:
            QatvalError: If a preset, a method or a training argument that it names does not exist.
        """
        given = dict(self.arguments)
        given |= {name: Path(given[name]) for name in _PATHS if name in given}
        if "primary" in given:
            given["primary"] = tuple(given["primary"])
        if "coco_root" not in given:
            given |= {"coco_root": out / EMBEDDED, "dataset": EMBEDDED}
        return configure(
            methods=self.methods,
            seed=self.seed,
            run_root=self.run_root(out),
            cache_dir=cache_dir,
            **given,
        )

    def draw(self, out: Path) -> None:
        """Draw the embedded dataset, if that is the job's and nobody has.

        Of several processes that come for it at once, one draws and the others wait.

        Raises:
            QatvalError: If it cannot be written, or something else is in its place.
        """
        if "coco_root" in self.arguments:
            return
        from qatval.data.shapes import draw_dataset

        with exclusive(out / f".{EMBEDDED}.lock"):
            draw_dataset(out / EMBEDDED)

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
        directory: From where official checkpoints are found, where the last command was given.
        resources: What each job takes.
        jobs: In the order in which they are placed.
        margin: Difference of mAP within which methods count as alike, None for no such question.
    """

    created_at: str
    directory: str
    resources: Resources
    jobs: tuple[Job, ...]
    margin: float | None = None


def read_plan(out: Path) -> Plan:
    """Return all that a study's folder holds, asked for by the last command or not.

    Raises:
        QatvalError: If there is no plan, or none that can be read.
    """
    file = out / PLAN_NAME
    if not file.exists():
        raise QatvalError(
            f"{out} holds no study: expected {PLAN_NAME}, as 'qatval study' leaves it"
        )
    try:
        content = read_regular(file, _LARGEST, expected="the plan of a study")
        return msgspec.json.decode(content, type=Plan)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise QatvalError(
            f"{file} is no plan of a study ({error}): restore it, or give another --out"
        ) from error


def write_plan(plan: Plan, out: Path) -> None:
    """Record a plan; what is recorded already and not in it stays.

    Raises:
        QatvalError: If the folder cannot be written to, or holds a plan that cannot be read.
    """
    kept: tuple[Job, ...] = read_plan(out).jobs if (out / PLAN_NAME).exists() else ()
    known, names = {job.name for job in kept}, {job.name for job in plan.jobs}
    assert len(names) == len(plan.jobs)
    whole = (*kept, *(job for job in plan.jobs if job.name not in known))
    content = msgspec.json.encode(msgspec.structs.replace(plan, jobs=whole))
    atomic_write(out / PLAN_NAME, msgspec.json.format(content, indent=2))


def discard(out: Path) -> None:
    """Remove the plan in a study's folder and all that came of it, to begin anew.

    Raises:
        QatvalError: If a controller is at work there.
    """
    with Claim() as claim:
        claim.add(out)
        if not (out / PLAN_NAME).exists():
            return
        for name in (RUNS, JOBS):  # the plan last: what is killed on the way is a study still
            if (out / name).exists():
                shutil.rmtree(out / name)
        (out / PLAN_NAME).unlink()
