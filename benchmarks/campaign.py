"""Many runs side by side, each part of them in a process of its own; finished ones are kept."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import REPOSITORY
from qatval.core.environment import available_cores, prepare_process
from qatval.core.summary import SUMMARY_NAME, load_summary
from qatval.testing.scenarios import REAL_DATA_VARIABLE, RealData


@dataclass(frozen=True)
class Part:
    """Runs of one seed and setting, which share the trainings that they can.

    Attributes:
        label: What is said of it as it is done.
        root: Where the runs go, one folder a method.
        coco_root: The dataset.
        precision: Fields of `Quantization` that replace the preset's.
        schedule: Name of a schedule other than the profile's, made of ``overrides``.
        overrides: Ultralytics' training arguments in the place of the profile's.
        options: Further arguments of `qatval.run.configuration.configure`.
    """

    label: str
    root: Path
    methods: tuple[str, ...]
    seed: int
    coco_root: Path
    precision: Mapping[str, Any]
    schedule: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether all runs have ended, well or not."""
        roots = [self.root / method for method in self.methods]
        return all(
            (root / SUMMARY_NAME).exists() and load_summary(root).status != "incomplete"
            for root in roots
        )


def carry_out(parts: Sequence[Part], jobs: int, cache: Path) -> None:
    """Run the parts that are not done, as many at a time as there are jobs.

    A part that fails is told and leaves the others alone.

    Args:
        parts: What to run.
        jobs: Processes at a time; they share the cores.
        cache: Where subsets are kept.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // jobs))
    prepare_process()
    missing = [part for part in parts if not part.done]
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        running = {pool.submit(_run, part, cache): part for part in missing}
        for number, future in enumerate(as_completed(running), 1):
            minutes = (time.monotonic() - started) / 60
            error = future.exception()
            told = f"{future.result():.0f} s" if error is None else f"{error!r}"
            print(
                f"{number}/{len(missing)} {running[future].label}: {told}, "
                f"{minutes:.0f} min so far",
                flush=True,
            )


def _run(part: Part, cache: Path) -> float:
    """Run a part and return how long it took."""
    from qatval.core.progress import Progress
    from qatval.run import runner
    from qatval.run.configuration import configure

    os.chdir(REPOSITORY)  # checkpoints are named relative to it
    started = time.monotonic()
    config = configure(
        variant="yolo10n",
        methods=part.methods,
        run_root=part.root,
        coco_root=part.coco_root,
        seed=part.seed,
        precision=part.precision,
        cache_dir=cache,
        overwrite=True,
        **part.options,
    )
    profile = config.profile
    if part.schedule is not None:
        profile = dataclasses.replace(
            profile,
            name=f"{profile.name}-{part.schedule}",
            overrides={**profile.overrides, **part.overrides},
        )
    runner.run(dataclasses.replace(config, profile=profile), Progress("", quiet=True))
    return time.monotonic() - started


def real_data() -> Path:
    """Return the folder with photographs: the one beside the checkout, or as the variable says."""
    beside = REPOSITORY.parent / "shared" / "real"
    return Path(os.environ.get(REAL_DATA_VARIABLE, beside))


def photographs(folder: Path) -> tuple[Path, Path]:
    """Return the dataset and the checkpoint in a folder as QATVAL_REAL_DATA names one.

    Raises:
        SystemExit: If one is missing, saying which.
    """
    data = RealData(folder.resolve())
    if missing := data.missing("yolo10n"):
        raise SystemExit(missing[0])
    checkpoint = data.checkpoint("yolo10n")
    assert data.coco_root is not None
    assert checkpoint is not None
    return data.coco_root, checkpoint
