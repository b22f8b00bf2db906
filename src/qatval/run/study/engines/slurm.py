"""Attempts as tasks of Slurm job arrays, submitted through submitit.

::

    slurm/placed.json   which task of Slurm's each job was placed as
    slurm/array-*/      the arrays: submitit's pickles, the scripts, what Slurm and submitit log

Tasks outlive the engine. What Slurm takes off a node, by preemption, by its time limit or because
the node failed, it requeues, and the job goes on from where it was.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from qatval.core import interruption
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.engines.slurm_parameters import LARGEST_ARRAY, settled
from qatval.run.study.engines.slurm_task import Command
from qatval.run.study.engines.squeue import Queue

NAME = "slurm"
_TIMEOUTS = 1000  # a job may take as many time limits
_AGAIN_S = 30.0

_BUSY = re.compile("unable to contact|timed out|temporarily|connection refused", re.IGNORECASE)
_FULL = re.compile("MaxSubmitJob")  # AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, ...


class SlurmEngine:
    """Places attempts as tasks of job arrays, and asks the queue what has become of them."""

    def __init__(
        self,
        resources: Resources,
        folder: Path,
        parameters: Mapping[str, Any],
        *,
        cluster: str = "slurm",
    ) -> None:
        """Take up what an earlier engine placed.

        Args:
            resources: Of each task. A share of a GPU is rounded up: Slurm hands out whole ones.
            folder: The study's, which nodes have by the same name.
            parameters: What else submitit's ``SlurmExecutor`` is told, e.g. ``partition``.
            cluster: Name of submitit's executor; "local" runs tasks on this machine.

        Raises:
            QatvalError: If Slurm or submitit is missing, a parameter is wrong, or the record of
                what was placed cannot be read.
        """
        self.resources = resources
        self._folder = folder / NAME
        self._record = self._folder / "placed.json"
        self._cluster = cluster
        self._parameters = settled(resources, parameters)
        if cluster == "slurm":
            _require_slurm()
        self._placed = _read(self._record)
        self._waiting: list[Attempt] = []
        self._submits_at = -math.inf
        self._array_size = _largest_array()
        self._queue = Queue()
        self._missed: set[str] = set()

    def place(self, attempts: Sequence[Attempt]) -> None:
        """Submit attempts, as arrays as large as the cluster takes them.

        What it has no room for yet is submitted later, from `ended`.

        Raises:
            QatvalError: If ``sbatch`` refuses them.
        """
        self._waiting += attempts
        self._submit()

    def held(self) -> set[str]:
        """Return the names of the jobs that are placed and have not been told as ended."""
        return self._placed.keys() | {attempt.job for attempt in self._waiting}

    def ended(self) -> dict[str, str]:
        """Return what has ended since the last call: by job, in Slurm's words, how."""
        if self._waiting and time.monotonic() >= self._submits_at:
            self._submit()
        known = self._queue.look(set(self._placed.values()))
        if known is None:
            return {}
        ended = {}
        for job, task in self._placed.items():
            found = known.get(task)
            if found is None and task not in self._missed:
                self._missed.add(task)  # it may have been placed after the question
            elif found is None:
                ended[job] = f"Slurm {task}: gone from the queue"
            elif found.has_ended:
                ended[job] = f"Slurm {task}: {found}"
            else:
                self._missed.discard(task)
        if ended:
            self._write({job: task for job, task in self._placed.items() if job not in ended})
        return ended

    def stop(self) -> str:
        """Leave in the queue what is there; return how to end it."""
        self._waiting.clear()
        if not self._placed:
            return "nothing is left in Slurm's queue"
        number = len(self._placed)
        arrays = sorted({task.partition("_")[0] for task in self._placed.values()}, key=int)
        return (
            f"{number} {'job stays' if number == 1 else 'jobs stay'} in Slurm's queue and will be "
            f"taken up again, unless 'scancel {' '.join(arrays)}' ends them"
        )

    def _submit(self) -> None:
        """Submit what waits, until it is done or Slurm takes no more for now."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        while self._waiting:
            batch = self._waiting[: self._array_size]
            try:
                with interruption.deferred():  # what Slurm has taken is recorded
                    self._write(self._placed | self._submitted(batch))
            except (FailedJobError, FailedSubmissionError) as error:
                reason = str(error)
                if _FULL.search(reason) and len(batch) > 1:
                    self._array_size = len(batch) // 2
                elif self._placed and (_FULL.search(reason) or _BUSY.search(reason)):
                    self._submits_at = time.monotonic() + _AGAIN_S
                    return
                else:
                    self._waiting.clear()
                    raise QatvalError(
                        f"sbatch: {_one_line(reason)}; change [slurm] or [resources] of the study"
                    ) from error
            else:
                del self._waiting[: len(batch)]

    def _submitted(self, attempts: Sequence[Attempt]) -> dict[str, str]:
        """Submit one array; return the task of each job."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # One's own alone: what is in it, nodes run.
        folder = Path(tempfile.mkdtemp(prefix="array-", dir=self._folder))
        patience_s = self._parameters["slurm_signal_delay_s"] * 2 / 3
        commands = [
            Command(replace(attempt, environment=dict(attempt.environment)), patience_s)
            for attempt in attempts
        ]
        try:
            with _outside_of_a_job():
                placed = self._executor(folder).submit_array(commands)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return {attempt.job: job.job_id for attempt, job in zip(attempts, placed, strict=True)}

    def _executor(self, folder: Path) -> Any:
        import submitit

        python = f"{shlex.quote(sys.executable)} -P"
        executor = submitit.AutoExecutor(
            folder,
            cluster=self._cluster,
            slurm_max_num_timeout=_TIMEOUTS,
            slurm_python=python,
            local_python=python,
        )
        executor.update_parameters(**self._parameters)
        return executor

    def _write(self, placed: dict[str, str]) -> None:
        atomic_write(self._record, msgspec.json.encode(placed))
        self._placed = placed


def _require_slurm() -> None:
    for program in ("sbatch", "squeue", "srun"):
        if shutil.which(program) is None:
            raise QatvalError(
                f"no {program} on PATH: give the command on a machine that submits to Slurm, or "
                "another --launcher"
            )


def _largest_array() -> int:
    """Return how many tasks an array may have."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        configuration = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
        if found := re.search(r"^MaxArraySize\s*=\s*(\d+)", configuration, re.MULTILINE):
            return max(1, min(int(found[1]), LARGEST_ARRAY))
    return LARGEST_ARRAY


def _read(record: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(record.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QatvalError(
            f"{record} cannot be read ({error}): remove it when squeue shows no job of the study"
        ) from error


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hide the job that this process is itself within, if it is: tasks would take after it."""
    of_a_job = re.compile(r"(SLURMD?|SRUN)_(?!CONF$)") if "SLURM_JOB_ID" in os.environ else None
    names = [name for name in os.environ if of_a_job and of_a_job.match(name)]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ |= hidden


def _one_line(text: str) -> str:
    """Return the last line that says something, as sbatch says the reason last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("sbatch: error: ") if lines else "no reason given"
