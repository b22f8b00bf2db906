"""Runs that an engine places: the selected scenarios are a study in the session's folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from qatval.core.errors import QatvalError
from qatval.run.folder import is_finished
from qatval.run.study.controller import LOG_NAME, Controller
from qatval.run.study.file import load_launching
from qatval.run.study.launching import Launching, launched
from qatval.run.study.plan import PLAN_NAME, Job, read_plan, write_plan
from qatval.run.study.planning import device_of, divided, plan_of
from qatval.testing.scenarios import COCO, Scenario
from qatval.testing.settings import Settings

_ROUND_S = 0.2
_ENDED = ("done", "failed")


class ScenarioStudy:
    """The runs of scenarios as jobs of a study, which whoever waits for one carries on."""

    def __init__(
        self, told: Mapping[Scenario, Mapping[str, Any]], launcher: str, settings: Settings
    ) -> None:
        """Plan the study, or take up the one that the session's folder holds.

        Args:
            told: By scenario, what `qatval.run.configuration.configure` is told of its data.
            launcher: What places the runs.
            settings: Of the session.

        Raises:
            QatvalError: If there is no such engine here, or it cannot do what the session's
                ``launcher_config`` says; if the folder holds runs of other settings.
        """
        config = settings.launcher_config
        launching = load_launching(config) if config else Launching()
        gpus = _gpus(told, launching, settings)
        self._out = settings.session_dir
        self._jobs = {
            scenario: job
            for scenarios in _trainings(told)
            for job in _jobs(scenarios, told[scenarios[0]], gpus, settings)
            for scenario in scenarios
            if scenario.method in job.methods
        }
        jobs = {job.name: job for job in self._jobs.values()}
        recorded = read_plan(self._out) if (self._out / PLAN_NAME).exists() else None
        for job in recorded.jobs if recorded else ():
            if jobs.get(job.name, job) != job:
                raise QatvalError(
                    f"{self._out}: {job.name} was begun with other settings: give another "
                    "--run-root, or the settings that it had"
                )
        plan = plan_of(jobs.values(), recorded, {**launching.resources, "gpus": gpus})
        self._engine, _ = launched(launcher, plan.resources, self._out, launching)
        write_plan(plan, self._out)
        # Not entered, which would claim the folder: it is the session's already.
        self._controller = Controller(plan, self._out, self._engine)

    def run_root(self, scenario: Scenario) -> Path:
        """Return a scenario's run root once its job has ended; carry the study on until then.

        Raises:
            QatvalError: If the job has failed, and left no finished run of the scenario; if the
                engine refuses jobs.
        """
        job = self._jobs[scenario]
        root = job.run_roots(self._out)[scenario.method]
        while (entry := self._controller.entry(job.name)).word not in _ENDED:
            self._controller.advance()
            time.sleep(_ROUND_S)
        if entry.word == "failed" and not is_finished(root):
            assert entry.state is not None
            log = job.folder(self._out) / LOG_NAME
            raise QatvalError(f"{entry.state.error} ({log})")
        return root

    def stop(self) -> str | None:
        """Stop the engine; return in a line what becomes of jobs that nobody waited for, if any."""
        held = self._engine.held()
        left = [
            e for e in self._controller.entries() if e.word not in _ENDED and e.job.name in held
        ]
        said = self._controller.stop()
        return said if left else None


def _gpus(scenarios: Iterable[Scenario], launching: Launching, settings: Settings) -> float:
    """Return how many GPUs each job takes: none, unless one of them is to run on one."""
    if settings.device == "cpu" or all(scenario.dataset != COCO for scenario in scenarios):
        return 0.0
    return float(launching.resources.get("gpus", 1 / settings.runs_per_gpu))


def _trainings(scenarios: Iterable[Scenario]) -> list[list[Scenario]]:
    groups: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        groups.setdefault(scenario.training, []).append(scenario)
    return list(groups.values())


def _jobs(
    scenarios: Sequence[Scenario], told: Mapping[str, Any], gpus: float, settings: Settings
) -> Iterator[Job]:
    """Yield the jobs of scenarios that differ in the method alone."""
    first = scenarios[0]
    arguments = {
        "variant": first.variant,
        "profile": first.profile,
        "device": device_of(gpus if first.dataset == COCO else 0),
        "gate_root": settings.gate_root,
        **told,
    }
    whole = Job(
        name=f"{first.dataset}-{first.variant}-{first.profile}/seed{first.seed}",
        methods=tuple(scenario.method for scenario in scenarios),
        seed=first.seed,
        arguments={
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in arguments.items()
            if value is not None
        },
    )
    for methods in divided(whole.config(settings.session_dir)):
        yield replace(whole, name=f"{whole.name}/{methods[0]}", methods=methods)
