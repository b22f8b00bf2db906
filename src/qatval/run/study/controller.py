"""Carries a study out: gives an engine attempts until every job is done, or has failed for good.

What became of a job is read from its files. All that the controller remembers is how often it has
tried in vain; killed and started again it goes on with whatever it finds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from msgspec.structs import replace

from qatval.core import interruption
from qatval.core.errors import QatvalError
from qatval.core.interruption import Interrupted
from qatval.data.cache import ENVIRONMENT_VARIABLE
from qatval.run.claim import Claim
from qatval.run.study.engines import Attempt, Engine
from qatval.run.study.plan import Job, Plan
from qatval.run.study.standing import Entry, entry
from qatval.run.study.state import JobState, write_state

LOG_NAME = "log.txt"
_ROUND_S = 0.1
_SHOWN_S = 1.0

_Reach = tuple[int, float]  # whole epochs, and of the steps of a stage the share


class Controller:
    """The life of a study, a round at a time. A context manager: the study's folder is its own.

    A job ends when all its runs are finished, or when its process says that it has failed. Any
    other end is one more attempt in vain, unless the job has got further than before: a preempted
    training that gains ground in every attempt goes on to its end.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        engine: Engine,
        *,
        retries: int = 2,
        only: Collection[str] | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """Settle what is to be done.

        Args:
            plan: As the study's folder holds it.
            out: The study's folder.
            engine: Where attempts run.
            retries: Attempts at a job in a row after one that got it no further, before it is
                given up.
            only: Names of the jobs that are wanted, None for all.
            cache_dir: Where subsets are kept, on every machine; None for its default.
        """
        self._plan, self._out, self._engine = plan, out.resolve(), engine
        self._retries, self._cache_dir = retries, cache_dir
        self._jobs = {job.name: job for job in plan.jobs if only is None or job.name in only}
        self._waiting = dict(self._jobs)
        self._placed: dict[str, JobState | None] = {}  # and how the job stood then
        self._final: dict[str, Entry] = {}
        self._furthest: dict[str, _Reach] = {}
        self._in_vain: dict[str, list[str]] = {}  # how attempts have ended since
        self._claim = Claim()

    def __enter__(self) -> Controller:
        """Take the study's folder.

        Raises:
            QatvalError: If another controller has it, or it cannot be written to.
        """
        self._claim.add(self._out)
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back; what is placed is the engine's until `stop`."""
        self._claim.release()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return len(self._final) == len(self._jobs)

    def advance(self) -> None:
        """Take note of what has ended, and place what may be tried. Never waits.

        Raises:
            QatvalError: If the engine refuses attempts, or the study's folder cannot be written to.
        """
        ended, held = self._engine.ended(), self._engine.held()
        for name in list(self._placed):
            if name in ended or name not in held:
                self._judge(name, ended.get(name, "lost by what had placed it"))
        attempts = []
        for name, job in list(self._waiting.items()):
            found = entry(job, self._out)
            if found.word == "done":
                self._settle(found)
            elif name in held:  # by an earlier controller, or its end was told too early
                self._note(found)
            elif found.word == "running":
                continue  # it may be anybody's: it ends, or falls silent
            elif len(self._in_vain.get(name, ())) > self._retries:
                self._give_up(found)
            else:
                self._note(found)
                attempts.append(self._attempt(job))
        if attempts:
            self._engine.place(attempts)

    def run(self, show: Callable[[Sequence[Entry]], None]) -> list[Entry]:
        """Advance to the end; stop the engine if anything comes between.

        Args:
            show: Is given how the jobs stand, every second if that is quickly found out, and at
                the end.

        Returns:
            How they stand then.

        Raises:
            Interrupted: If a signal has come; it says what has become of what was placed.
            QatvalError: As `advance`.
        """
        shows_at = 0.0
        try:
            while not self.finished:
                self.advance()
                if (now := time.monotonic()) >= shows_at:
                    show(self.entries())
                    took = time.monotonic() - now  # seconds, where files are many or far away
                    shows_at = now + max(_SHOWN_S, 10 * took)
                time.sleep(_ROUND_S)
        except KeyboardInterrupt as interrupted:
            name = interruption.by() or "SIGINT"
            raise Interrupted(
                f"interrupted by {name}: {self.stop()}; the same command goes on"
            ) from interrupted
        except BaseException:
            self.stop()
            raise
        show(self.entries())
        return self.entries()

    def entries(self) -> list[Entry]:
        """Return how the wanted jobs stand; what has failed before and is tried again waits."""
        return [self.entry(name) for name in self._jobs]

    def entry(self, name: str) -> Entry:
        """Return how one of the wanted jobs stands."""
        if name in self._final:
            return self._final[name]
        found = entry(self._jobs[name], self._out)
        return Entry(found.job, "waiting", found.state) if found.word == "failed" else found

    def stop(self) -> str:
        """Stop the engine; return in a line what becomes of what was placed."""
        return self._engine.stop()

    def _note(self, found: Entry) -> None:
        name = found.job.name
        del self._waiting[name]
        self._placed[name] = found.state
        self._furthest.setdefault(name, _reach(found.state))

    def _judge(self, name: str, how: str) -> None:
        """Find out what an attempt has come to; what has not settled the job waits again."""
        job, before = self._jobs[name], self._placed.pop(name)
        found = entry(job, self._out)
        if found.word == "done" or (found.word == "failed" and found.state != before):
            self._settle(found)
            return
        if (reach := _reach(found.state)) > self._furthest[name]:
            self._furthest[name] = reach
            self._in_vain[name] = []
        else:
            self._in_vain.setdefault(name, []).append(how)
        self._waiting[name] = job

    def _settle(self, found: Entry) -> None:
        self._waiting.pop(found.job.name, None)
        self._final[found.job.name] = found

    def _give_up(self, found: Entry) -> None:
        """Settle a job that attempts get no further, and say so in its state for others to see."""
        attempts = self._in_vain[found.job.name]
        why = f"{attempts[-1]}; given up after {len(attempts)} attempts that got it no further"
        state = found.state or JobState(
            standing="failed",
            attempt=len(attempts),
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        state = replace(state, standing="failed", error=why)
        with contextlib.suppress(QatvalError), Claim() as claim:
            folder = found.job.folder(self._out)
            claim.add(folder)
            write_state(folder, state)
        self._settle(Entry(found.job, "failed", state, found.written))

    def _attempt(self, job: Job) -> Attempt:
        folder = job.folder(self._out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QatvalError(
                f"cannot write {folder}: {error.strerror}; make room, or the folder writable, and "
                "give the same command again"
            ) from error
        command = (sys.executable, "-P", "-m", "qatval.run.study.job", str(self._out), job.name)
        directory = Path(self._plan.directory)
        return Attempt(job.name, command, self._environment(), directory, folder / LOG_NAME)

    def _environment(self) -> Mapping[str, str]:
        """Return what all attempts are told: their threads, that a CPU's see no GPU, the cache."""
        resources = self._plan.resources
        environment = {"OMP_NUM_THREADS": str(resources.threads)}
        if not resources.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if self._cache_dir is not None:
            environment[ENVIRONMENT_VARIABLE] = str(self._cache_dir.resolve())
        return environment


def _reach(state: JobState | None) -> _Reach:
    """Return how far a job has got for certain: after an orderly end its steps count as well."""
    if state is None:
        return 0, 0.0
    epochs = max(state.epoch - 1, 0)
    return epochs, (state.done or 0.0) if state.standing == "interrupted" else 0.0
