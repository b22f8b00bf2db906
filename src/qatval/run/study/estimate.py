"""How long a study takes and on how much disk, by what was measured last.

Jobs of the same variant and image size are alike: what a training takes goes with the images that
it sees, what else a run takes, and its files, with the number of runs. Those that are done in the
study's folder tell; where none is, the last one of this user's on a machine like that,
which every job leaves in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qatval.core.environment import machine, user_folder
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, read_regular
from qatval.core.formatting import count, duration
from qatval.core.locks import exclusive
from qatval.core.summary import RunSummary, load_summary
from qatval.data.shapes import TRAIN_IMAGES
from qatval.quant.methods import method
from qatval.run.configuration import RunConfig
from qatval.run.study.plan import Job, Plan
from qatval.run.study.standing import entry

RECORD_NAME = "measured-jobs.json"
_LARGEST = 10_000_000  # bytes
_ENOUGH = 20  # jobs of a kind that tell of it


class Measured(msgspec.Struct, frozen=True):
    """What one job took.

    Attributes:
        gpu: Name of the GPU, None on a CPU.
        at: When its first run was begun, ISO 8601.
        image_s: Seconds of training by image and epoch, None if nothing was trained.
        images: That the training had, in an epoch.
        run_s: Seconds of all else, by run.
        run_bytes: On disk, by run.
    """

    variant: str
    imgsz: int
    cpu: str
    gpu: str | None
    threads: int
    at: str
    image_s: float | None
    images: int
    run_s: float
    run_bytes: int

    @property
    def key(self) -> str:
        """What the last measurement is kept by."""
        return f"{self.variant} {self.imgsz} px {self.gpu or self.cpu} {self.threads} threads"


def measured(summaries: Sequence[RunSummary], folder: Path) -> Measured | None:
    """Return what a finished job took, None if its summaries do not say.

    Args:
        summaries: Of all its runs.
        folder: That the run roots are in.
    """
    first = summaries[0]
    found, totals = first.environment or {}, [(s.timings or {}).get("total") for s in summaries]
    images, threads = first.dataset.train_images, first.training.threads
    if images is None or threads is None or None in totals:
        return None
    # Stages of a job follow each other, in the run that ends last all of them.
    whole = max(total for total in totals if total is not None)
    training = max((s.timings or {}).get("training", 0.0) for s in summaries)
    return Measured(
        variant=first.model.variant,
        imgsz=int(first.model.imgsz),
        cpu=str(found.get("cpu")),
        gpu=found.get("gpu"),
        threads=threads,
        at=first.created_at,
        image_s=training / (images * first.training.epochs) if training else None,
        images=images,
        run_s=(whole - training) / len(summaries),
        run_bytes=_bytes_in(folder) // len(summaries),
    )


def remember(job: Job, summaries: Sequence[RunSummary], folder: Path) -> None:
    """Keep what a finished job took in the user's cache folder; never fails.

    Args:
        job: That is finished.
        summaries: Of all its runs.
        folder: That the run roots are in, `Job.run_root`.
    """
    cache = user_folder("cache")
    with contextlib.suppress(OSError, QatvalError):  # nothing depends on it
        found = measured(summaries, folder)
        if found is None or found.image_s is None or cache is None:
            return
        cache.mkdir(parents=True, exist_ok=True)
        with exclusive(cache / f".{RECORD_NAME}.lock"):
            kept = {one.key: one for one in remembered()} | {found.key: found}
            content = msgspec.json.encode(list(kept.values()))
            atomic_write(cache / RECORD_NAME, msgspec.json.format(content, indent=2))


def remembered() -> list[Measured]:
    """Return what was kept last of every kind of job; nothing where that cannot be read."""
    cache = user_folder("cache")
    with contextlib.suppress(QatvalError, ValueError, RecursionError):
        if cache is not None and (cache / RECORD_NAME).exists():
            content = read_regular(cache / RECORD_NAME, _LARGEST, expected="measured jobs")
            return msgspec.json.decode(content, type=list[Measured])
    return []


@dataclass(frozen=True)
class Estimate:
    """What a study takes, as far as it can be told.

    Attributes:
        jobs, runs: Of the plan.
        left: Jobs that are not finished.
        places: Jobs side by side.
        unknown: Of those left, jobs that nothing is known of.
        seconds: Least and most that the others take, side by side.
        basis: By what, in words.
        used, more, free: Bytes that the finished jobs have, that the others will, that are left.
    """

    jobs: int
    runs: int
    left: int
    places: int
    unknown: tuple[str, ...]
    seconds: tuple[float, float]
    basis: str
    used: int
    more: int
    free: int

    def lines(self) -> list[str]:
        """Return what to print."""
        said = f"{count(self.jobs, 'job')}, {count(self.runs, 'run')}"
        if not self.left:
            return [f"{said}; all are done, on {_size(self.used)}"]
        done = f"{self.jobs - self.left} done, {self.left} to run"
        side = f", {self.places} side by side" if self.places > 1 else ""
        told = [f"{said}; {done}{side}"]
        if self.basis:
            least, most = map(duration, self.seconds)
            span = f"about {most}" if least == most else f"{least} to {most}"
            more = f"; {count(len(self.unknown), 'job')} not counted in" if self.unknown else ""
            told.append(f"time: {span}, by {self.basis}{more}")
            short = ": too little" if self.more > self.free else ""
            told.append(
                f"disk: {_size(self.more)} beside {_size(self.used)} that are there; "
                f"{_size(self.free)} free{short}"
            )
        if self.unknown:
            kinds = ", ".join(dict.fromkeys(self.unknown))
            told.append(f"not measured yet: {kinds}; the first job that is done tells")
        return told


def estimate(plan: Plan, out: Path, places: int = 1) -> Estimate:
    """Return what is done of a plan, what is to run, and what that takes.

    Args:
        plan: What is asked for.
        out: The study's folder; need not exist.
        places: How many jobs run side by side.
    """
    left = [job for job in plan.jobs if entry(job, out).word != "done"]
    names = {job.name for job in left}
    done = [job for job in plan.jobs if job.name not in names]
    here = list(_measured_here(done, out))
    before = remembered()
    configs: dict[tuple[str, str], RunConfig] = {}
    spans, unknown, more, by = [], [], 0.0, []
    for job in left:
        kind = (job.arguments["variant"], job.training)
        config = configs[kind] if kind in configs else configs.setdefault(kind, job.config(out))
        alike = _alike(here, config) or _last(before, config, plan.resources.threads)
        images = _images(job, config, alike)
        if not alike or images is None:
            where = "CPU" if config.device == "cpu" else "GPU"
            unknown.append(f"{config.variant.name} at {config.profile.imgsz} px on a {where}")
            continue
        trains = any(method(name).training is not None for name in job.methods)
        seen = images * config.profile.epochs * trains
        took = [one.run_s * len(job.methods) + (one.image_s or 0.0) * seen for one in alike]
        spans.append((min(took), max(took)))
        more += statistics.median(one.run_bytes for one in alike) * len(job.methods)
        by.append(tuple(alike))
    return Estimate(
        jobs=len(plan.jobs),
        runs=sum(len(job.methods) for job in plan.jobs),
        left=len(left),
        places=places,
        unknown=tuple(unknown),
        seconds=(
            _side_by_side([least for least, _ in spans], places),
            _side_by_side([most for _, most in spans], places),
        ),
        basis=_basis({one: None for group in by for one in group}, here),
        used=sum(_bytes_in(job.run_root(out)) for job in done),
        more=int(more),
        free=_free(out),
    )


def _measured_here(done: Iterable[Job], out: Path) -> Iterator[Measured]:
    """Yield what jobs of a study took, the first few of each kind: to read all takes its time."""
    seen: Counter[tuple[str, str]] = Counter()
    for job in done:
        kind = (job.arguments["variant"], job.training)
        if seen[kind] < _ENOUGH:
            with contextlib.suppress(QatvalError):  # a summary that somebody has changed
                roots = job.run_roots(out).values()
                found = measured([load_summary(root) for root in roots], job.run_root(out))
                if found is not None:
                    seen[kind] += 1
                    yield found


def _alike(found: Iterable[Measured], config: RunConfig) -> list[Measured]:
    """Return those of the same variant and image size, of trained jobs."""
    return [
        one
        for one in found
        if one.variant == config.variant.name
        and one.imgsz == config.profile.imgsz
        and one.image_s is not None
        and (one.gpu is None) == (config.device == "cpu")
    ]


def _last(before: Iterable[Measured], config: RunConfig, threads: int) -> list[Measured]:
    """Return the last one on this processor, or on any GPU: which it will be, nobody knows yet.

    One with as many threads comes first; another tells at least the order of magnitude.
    """
    found = _alike(before, config)
    if config.device == "cpu":
        cpu = machine()["cpu"]
        found = [one for one in found if one.cpu == cpu]
    return sorted(found, key=lambda one: (one.threads == threads, one.at))[-1:]


def _images(job: Job, config: RunConfig, alike: Sequence[Measured]) -> int | None:
    """Return how many images an epoch has, None if nobody can say."""
    if config.profile.train_images is not None:
        return config.profile.train_images
    if "coco_root" not in job.arguments:
        return TRAIN_IMAGES
    return max((one.images for one in alike), default=None)


def _basis(by: Iterable[Measured], here: Sequence[Measured]) -> str:
    done = [one for one in by if one in here]
    others = [one for one in by if one not in here]
    said = [f"{count(len(done), 'job')} of this study"] if done else []
    for one in others:
        where = one.gpu or f"{one.cpu} with {count(one.threads, 'thread')}"
        said.append(f"one job of {one.at[:10]} on {where}")
    return " and ".join(said)


def _side_by_side(seconds: Sequence[float], places: int) -> float:
    return max(sum(seconds) / places, max(seconds, default=0.0))


def _bytes_in(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it has just been removed
            sizes += path.lstat().st_blocks * 512
    return sizes


def _free(out: Path) -> int:
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
