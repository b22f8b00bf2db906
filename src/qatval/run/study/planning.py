"""From what a study asks for to jobs: what is recorded stays, what is new is appended."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from qatval.core.environment import available_cores
from qatval.core.errors import QatvalError
from qatval.data.coco import coco_files
from qatval.quant.methods import method
from qatval.run import runner
from qatval.run.configuration import RunConfig
from qatval.run.study.engines import Resources
from qatval.run.study.matrix import EMBEDDED, FIELDS, Schedule, Study
from qatval.run.study.plan import PLAN_NAME, Job, Plan, read_plan
from qatval.run.workspace import flat


class _Place(NamedTuple):
    """What there is once in a study; what is in FP32 is the same in all quantizations."""

    variant: str
    training: str
    quantization: str | None
    seed: int
    method: str


def planned(study: Study, out: Path, places: int | None = None) -> Plan:
    """Return the jobs that a study asks for: those that its folder has, and new ones.

    Methods that would share a training with recorded ones get one of their own. A job is whole: one
    method of it that is asked for brings the others along.

    Args:
        study: What is asked for.
        out: The study's folder; need not exist, and nothing is written.
        places: The most jobs that are to run side by side, None for as many as there are cores.

    Raises:
        QatvalError: For all that can be known to be wrong before the first run: names, values, a
            missing dataset or checkpoint, a closed gate, a setting other than the one recorded.
    """
    if study.dataset != EMBEDDED:
        if not Path(study.dataset).is_dir():
            raise QatvalError(
                f"{study.source}: dataset: {study.dataset} is no folder; expected one in COCO "
                f"2017's layout, or '{EMBEDDED}'"
            )
        with _within(study, "dataset"):
            coco_files(Path(study.dataset))
    recorded = read_plan(out) if (out / PLAN_NAME).exists() else None
    jobs = _Jobs(study, out, recorded.jobs if recorded else ())
    for asked in _asked(study):
        jobs.add(asked)
    plan = replace(
        plan_of(jobs.wanted.values(), recorded, study.resources, places), margin=study.margin
    )
    if recorded is None:
        return plan
    for key, was, now_is in (
        ("resources.threads", recorded.resources.threads, plan.resources.threads),
        ("margin", recorded.margin, plan.margin),
    ):
        if was != now_is:
            raise _changed(study, out, key, was, now_is)
    return plan


def plan_of(
    jobs: Collection[Job],
    recorded: Plan | None,
    resources: Mapping[str, Any],
    places: int | None = None,
) -> Plan:
    """Return a plan of jobs.

    Args:
        jobs: In the order in which they are to be placed.
        recorded: What the study's folder holds already; it says when the study was planned, and
            the threads of a job where ``resources`` does not.
        resources: What a job takes, as far as it is said; threads, if nobody says, so that all
            cores compute.
        places: The most jobs that are to run side by side, None for as many as there are cores.
    """
    if recorded:
        created_at, threads = recorded.created_at, recorded.resources.threads
    else:
        created_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        cores, side = available_cores(), min(len(jobs), places or len(jobs))
        threads = max(1, cores // min(cores, side))
    return Plan(
        created_at=created_at,
        directory=str(Path.cwd()),
        resources=Resources(**{"threads": threads, **resources}),
        jobs=tuple(jobs),
    )


def divided(config: RunConfig) -> list[tuple[str, ...]]:
    """Divide methods by the training that they share; what trains nothing goes with the first.

    Returns:
        The names of each job's methods, in the order of the configuration's.
    """
    trainings = config.trainings()
    trained = [methods for training, methods in trainings if training is not None]
    others = [methods for training, methods in trainings if training is None]
    first = (*(trained[0] if trained else ()), *(others[0] if others else ()))
    return [
        tuple(one.name for one in config.methods if one in methods)
        for methods in (first, *trained[1:])
    ]


def _asked(study: Study) -> Iterator[Job]:
    """Yield all that is asked for, a setting and a seed at a time, seed after seed."""
    for seed in study.seeds:
        for training, schedule in study.schedules().items():
            if seed not in (schedule.seeds or study.seeds):
                continue
            for variant in schedule.variants or study.variants:
                for quantization in schedule.quantizations or study.quantizations:
                    yield Job(
                        name=f"{variant}-{training}-{quantization}/seed{seed}",
                        methods=schedule.methods or study.methods,
                        seed=seed,
                        arguments=_arguments(study, variant, training, schedule, quantization),
                        training=training,
                        quantization=quantization,
                    )


def _arguments(
    study: Study, variant: str, training: str, schedule: Schedule, quantization: str
) -> dict[str, Any]:
    given: dict[str, Any] = {"variant": variant, "primary": list(study.primary)}
    if study.dataset != EMBEDDED:
        given["coco_root"] = study.dataset
    if study.gate_root is not None:
        given["gate_root"] = study.gate_root
    given["device"] = device_of(study.resources.get("gpus", 0))
    given |= schedule.arguments()
    if schedule.overrides:
        given["schedule"] = training
    return given | study.quantizations[quantization].arguments()


def device_of(gpus: float) -> str:
    """Return the device of a job that takes so many GPUs and sees no others."""
    return ",".join(map(str, range(max(1, int(gpus))))) if gpus else "cpu"


class _Jobs:
    """The jobs that a study asks for, as they are found.

    Attributes:
        wanted: By name, in the order in which they are placed.
    """

    def __init__(self, study: Study, out: Path, recorded: Sequence[Job]) -> None:
        self.wanted: dict[str, Job] = {}
        self._study, self._out = study, out
        self._known = {place: job for job in recorded for place in _places(job)}
        self._folders = {_folder(job): _setting(job) for job in recorded}
        self._groups: dict[tuple[Any, ...], list[tuple[str, ...]]] = {}

    def add(self, asked: Job) -> None:
        """Find the jobs of a setting and a seed, and make those that are not there."""
        missing = []
        for name, place in zip(asked.methods, _places(asked), strict=True):
            if (job := self._known.get(place)) is None:
                missing.append(name)
            else:
                self._hold(job, asked)
                self.wanted.setdefault(job.name, job)
        if not missing:
            return
        if self._folders.setdefault(_folder(asked), _setting(asked)) != _setting(asked):
            raise QatvalError(
                f"{self._study.source}: two settings have the folder {_folder(asked)}: name a "
                "training or a quantization otherwise"
            )
        for methods in self._divided(replace(asked, methods=tuple(missing))):
            job = replace(asked, name=f"{asked.name}/{methods[0]}", methods=methods)
            self.wanted[job.name] = job
            self._known |= dict.fromkeys(_places(job), job)

    def _divided(self, asked: Job) -> list[tuple[str, ...]]:
        """Divide methods as `divided` does.

        What can be wrong with the setting is refused; it is the same for all seeds.
        """
        key = (_setting(asked), asked.methods)
        if key not in self._groups:
            with _within(self._study, _folder(asked)):
                config = asked.config(self._out)
                drawn = "coco_root" in asked.arguments or config.coco_root.exists()
                runner.check(config, drawn=drawn)
            self._groups[key] = divided(config)
        return self._groups[key]

    def _hold(self, job: Job, asked: Job) -> None:
        """Refuse a setting that is not the one that is recorded."""
        skipped = {"gate_root", "schedule"}
        if job.quantization != asked.quantization:  # of methods in FP32
            skipped |= {"quantization", "precision"}
        was, now = (
            {k: v for k, v in flat(one.arguments).items() if k.partition(".")[0] not in skipped}
            for one in (job, asked)
        )
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                key = _key(name, asked)
                raise _changed(self._study, self._out, key, was.get(name), now.get(name))


def _places(job: Job) -> list[_Place]:
    variant = job.arguments["variant"]
    return [
        _Place(
            variant,
            job.training,
            job.quantization if method(name).quantized else None,
            job.seed,
            name,
        )
        for name in job.methods
    ]


def _setting(job: Job) -> tuple[str, str, str]:
    return job.arguments["variant"], job.training, job.quantization


def _folder(job: Job) -> str:
    return job.name.partition("/")[0]


def _key(name: str, asked: Job) -> str:
    """Return what a study file calls an argument of `configure`."""
    group, _, field = name.partition(".")
    if group == "precision":
        fields = {field: key for key, field in FIELDS.items()}
        return f"quantizations.{asked.quantization}.{fields.get(field, field)}"
    if group == "quantization":
        return f"quantizations.{asked.quantization}.quantization"
    if group in ("primary", "coco_root"):
        return "dataset" if group == "coco_root" else group
    return f"trainings.{asked.training}.{name}"


def _changed(study: Study, out: Path, key: str, was: Any, now: Any) -> QatvalError:
    was, now = ("not given" if value is None else value for value in (was, now))
    remedy = "give another --out"
    if "." in key and not key.startswith("resources"):
        remedy += f", or {'.'.join(key.split('.')[:2])} another name"
    return QatvalError(f"{study.source}: {key}: it was {was}, is {now} in {out}; {remedy}")


@contextlib.contextmanager
def _within(study: Study, what: str) -> Iterator[None]:
    """Say in errors what of the study they are about."""
    try:
        yield
    except QatvalError as error:
        raise QatvalError(f"{study.source}: {what}: {error}") from error
