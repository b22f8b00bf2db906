"""One attempt at a job, as a process of its own: ``python -P -m qatval.run.study.job OUT JOB``.

Exit codes: 0 done, 1 failed for a reason that another attempt would meet again, 75 interrupted with
everything kept to go on from. Whatever ended an earlier attempt, this one goes on from there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from qatval.core import interruption
from qatval.core.environment import prepare_process
from qatval.core.errors import QatvalError, from_system
from qatval.core.formatting import terminal_line
from qatval.core.progress import Progress
from qatval.run import runner
from qatval.run.claim import Claim, HeldError
from qatval.run.configuration import RunConfig
from qatval.run.study.engines import PARENT
from qatval.run.study.estimate import remember
from qatval.run.study.plan import Job, Plan, read_plan
from qatval.run.study.standing import entry, finished
from qatval.run.study.state import BEAT_S, JobState, Standing, read_state, write_state

PATIENCE_S = 60.0
"""Seconds that an attempt waits for another process to let go of its job."""

_LOOK_S = 1.0
"""Seconds after which it is noticed that a stage is another one, or the parent gone."""

_EXIT_CODES: dict[Standing, int] = {
    "done": 0,
    "failed": 1,
    "interrupted": interruption.EXIT_CODE,
}


def main(argv: Sequence[str]) -> int:
    """Work on a job; return the exit code."""
    out, name = Path(argv[0]).resolve(), argv[1]
    with interruption.listening():
        try:
            return _attempt(out, name)
        except QatvalError as error:
            return _failed(error)
        except BaseException as error:
            if not interruption.requested() and not isinstance(error, KeyboardInterrupt):
                raise
            return interruption.EXIT_CODE


def _attempt(out: Path, name: str) -> int:
    prepare_process()
    logging.basicConfig(level=logging.WARNING, format="qatval: %(levelname)s: %(message)s")
    plan = read_plan(out)
    job = next((job for job in plan.jobs if job.name == name), None)
    if job is None:
        raise QatvalError(f"{out} has no job '{name}'; expected one that its study.json names")
    try:
        os.chdir(plan.directory)
    except OSError as error:
        raise QatvalError(
            f"{plan.directory}: {error.strerror}; expected the folder that the study was planned in"
        ) from error
    with Claim() as claim:
        if not _taken(job, out, claim):
            return interruption.EXIT_CODE
        heart = Heart(job.folder(out), claim)
        standing, why = _outcome(job, plan, out, heart)
        with contextlib.suppress(interruption.Interrupted), interruption.deferred():
            heart.stop(standing, why)
    return _EXIT_CODES[standing]


def _taken(job: Job, out: Path, claim: Claim) -> bool:
    """Whether this process has the job for itself, after waiting for one that still saves it.

    The state is asked as well as the lock, as some file systems know no locks between machines.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        held = f"{job.name} is being worked on by another process"
        if entry(job, out).word != "running":
            try:
                claim.add(job.folder(out))
                return True
            except HeldError as error:
                held = str(error)
        if time.monotonic() > until:
            _say(f"{held}: left to it")
            return False
        time.sleep(1.0)


def _outcome(job: Job, plan: Plan, out: Path, heart: Heart) -> tuple[Standing, str | None]:
    """Do the work; return how it has ended, and why if it has not been done."""
    _say(f"{job.name}: attempt {heart.state.attempt} on {heart.state.host}, {os.getpid()}")
    try:
        if not finished(job, out):
            config = job.config(out)
            heart.tell(device=_device(plan.resources.gpus, config), epochs=config.profile.epochs)
            job.draw(out)
            with _Told(job.name, heart) as progress:
                summaries = runner.run(config, progress)
            heart.tell(value=summaries[0].metrics.final_value)
            remember(job, summaries, job.run_root(out))
    except BaseException as error:
        if interruption.requested() or isinstance(error, KeyboardInterrupt):
            _say(str(error))
            return "interrupted", None
        told = error if isinstance(error, QatvalError) else from_system(error)
        if told is None:
            with contextlib.suppress(OSError):
                traceback.print_exception(error)
            told = QatvalError(f"{type(error).__name__}: {error}")
        _failed(told)
        return "failed", terminal_line(str(told))
    return "done", None


def _device(gpus: float, config: RunConfig) -> str:
    """Return what computes; of a GPU that others use too this process gets its share of memory."""
    if not gpus or config.device == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    if gpus < 1:  # a run that needs more than its share fails by itself, and not its neighbours
        torch.cuda.set_per_process_memory_fraction(gpus, 0)
    return torch.cuda.get_device_name(0)


class Heart:
    """Keeps the state of a job fresh from a thread, however long a step or an import takes.

    Ends the process by SIGTERM, so that its state is saved, once the process that started it is
    gone: a placed job never outlives what placed it.

    Attributes:
        state: What was told last.
    """

    def __init__(self, folder: Path, claim: Claim) -> None:
        """Begin an attempt.

        Args:
            folder: Of the job.
            claim: Says whether the folder is still the one that was claimed.

        Raises:
            QatvalError: If the folder cannot be written to.
        """
        before, _ = read_state(folder)
        self.state = JobState(
            standing="running",
            attempt=1 + (before.attempt if before else 0),
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
            # what is done stays shown until this attempt has found out
            epoch=before.epoch if before else 0,
            value=before.value if before else None,
        )
        self._folder, self._claim = folder, claim
        self._before_s = before.seconds if before else 0.0
        self._since = time.monotonic()
        # Not asked for only now: it may be gone, and another have taken its place.
        self._parent = int(os.environ.pop(PARENT, os.getppid()))
        self._stopped = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def tell(self, **fields: Any) -> None:
        """Replace fields of the state; they are written with the next beat."""
        self.state = replace(self.state, **fields)

    def stop(self, standing: Standing, error: str | None) -> None:
        """Say the last word, after which nothing is written any more."""
        self._stopped.set()
        self._thread.join()
        self.tell(standing=standing, error=error)
        with contextlib.suppress(QatvalError):  # the exit code and the run roots say it as well
            self._write()

    def _beat(self) -> None:
        orphaned, written, stage = False, time.monotonic(), self.state.stage
        while not self._stopped.wait(_LOOK_S):
            if os.getppid() != self._parent and not orphaned and not interruption.requested():
                orphaned = True
                os.kill(os.getpid(), signal.SIGTERM)
            if time.monotonic() - written >= BEAT_S or self.state.stage != stage:
                written, stage = time.monotonic(), self.state.stage
                with contextlib.suppress(QatvalError):  # a full disk may have room again
                    self._write()

    def _write(self) -> None:
        seconds = self._before_s + time.monotonic() - self._since
        self._claim.check(self._folder)
        write_state(self._folder, replace(self.state, seconds=round(seconds, 1)))


class _Told(Progress):
    """Tells a job's state how far it is; milestones are printed, to the log."""

    def __init__(self, title: str, heart: Heart) -> None:
        super().__init__(title)
        self._heart = heart
        self._total: int | None = None
        self._first: tuple[int, float] | None = None  # step of the stage, and when

    def stage(self, name: str, total: int | None = None) -> None:
        super().stage(name, total)
        self._total, self._first = total, None
        self._heart.tell(stage=name, done=None, left_s=None)

    def step(self, done: int, **values: float) -> None:
        super().step(done, **values)
        told: dict[str, Any] = {"epoch": int(values["epoch"])} if "epoch" in values else {}
        if measured := [value for name, value in values.items() if name.startswith("mAP")]:
            told["value"] = measured[0]  # of the first method
        if self._total:
            told |= {"done": done / self._total, "left_s": self._left(done, self._total)}
        self._heart.tell(**told)

    def _left(self, done: int, total: int) -> float | None:
        """Return seconds to the end of the stage, at the pace that this attempt has had in it."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        first, since = self._first
        return (total - done) * (now - since) / (done - first) if done > first else None


def _failed(error: QatvalError) -> int:
    _say(f"error: {error}")
    return 1


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log may lie on a full disk
        print(terminal_line(f"qatval: {text}"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
