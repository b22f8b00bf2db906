"""The controller against an engine that loses, delays and repeats ends, and processes that die.

The engine is the adversary; the files are real, written as processes on another machine would.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from qatval.core.errors import QatvalError
from qatval.core.summary import write_summary
from qatval.data.cache import ENVIRONMENT_VARIABLE
from qatval.run.study.controller import Controller
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.plan import Job, Plan
from qatval.run.study.standing import finished
from qatval.run.study.state import SILENT_S, STATE_NAME, JobState, read_state, write_state
from qatval.testing import build_summary


class Engine:
    """Holds what it is given until it is told to tell of an end."""

    def __init__(self, begin: Callable[[Attempt], None] = lambda attempt: None) -> None:
        self.resources = Resources()
        self.attempts: list[Attempt] = []
        self.holds: set[str] = set()
        self.tells: dict[str, str] = {}
        self._begin = begin

    def place(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            assert attempt.job not in self.holds
            assert attempt.log.parent.is_dir()
            self.attempts.append(attempt)
            self.holds.add(attempt.job)
            self._begin(attempt)

    def held(self) -> set[str]:
        return set(self.holds)

    def ended(self) -> dict[str, str]:
        told, self.tells = self.tells, {}
        self.holds -= told.keys()
        return told

    def stop(self) -> str:
        return "stopped"

    def tell(self, job: Job, how: str = "ended") -> None:
        self.tells[job.name] = how


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def controller(plan: Plan, tmp_path: Path, engine: Engine) -> Iterator[Controller]:
    with Controller(plan, tmp_path, engine, retries=1) as made:
        yield made


def words(controller: Controller) -> list[str]:
    return [entry.word for entry in controller.entries()]


def test_a_study_ends_when_all_is_done(
    plan: Plan, controller: Controller, engine: Engine, say: Any, finish: Any
) -> None:
    controller.advance()
    assert [attempt.job for attempt in engine.attempts] == [job.name for job in plan.jobs]
    for job in plan.jobs:
        assert not controller.finished
        say(job, "done")
        finish(job)
        engine.tell(job)
        controller.advance()
    assert controller.finished
    assert words(controller) == ["done", "done"]
    assert len(engine.attempts) == 2


def test_an_attempt_is_told_of_its_threads_and_of_no_gpu(
    plan: Plan, tmp_path: Path, engine: Engine
) -> None:
    with Controller(plan, tmp_path, engine, cache_dir=tmp_path / "cache") as controller:
        controller.advance()
    one = engine.attempts[0]
    assert one.environment == {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        ENVIRONMENT_VARIABLE: str(tmp_path / "cache"),
    }
    assert one.command[1:] == ("-P", "-m", "qatval.run.study.job", str(tmp_path), one.job)
    assert one.directory == Path(plan.directory)


def test_what_is_finished_is_not_run_again(
    plan: Plan, controller: Controller, engine: Engine, finish: Any
) -> None:
    finish(plan.jobs[0])
    controller.advance()
    assert [attempt.job for attempt in engine.attempts] == [plan.jobs[1].name]


def test_only_what_is_wanted_is_run(plan: Plan, tmp_path: Path, engine: Engine) -> None:
    wanted = plan.jobs[1].name
    with Controller(plan, tmp_path, engine, only=[wanted]) as controller:
        controller.advance()
        assert [entry.job.name for entry in controller.entries()] == [wanted]
    assert [attempt.job for attempt in engine.attempts] == [wanted]


def test_what_has_failed_is_left_in_this_call_and_tried_in_the_next(
    plan: Plan, tmp_path: Path, controller: Controller, engine: Engine, say: Any
) -> None:
    job = plan.jobs[0]
    say(job, "failed", error="of an earlier call")
    controller.advance()
    assert words(controller) == ["waiting", "waiting"]
    say(job, "failed", attempt=2, error="no such checkpoint")
    engine.tell(job, "ended with exit code 1")
    controller.advance()
    controller.advance()
    assert words(controller)[0] == "failed"
    assert len(engine.attempts) == 2
    assert not controller.finished  # the other one goes on


def test_an_attempt_that_has_died_before_its_first_word_has_not_failed(
    plan: Plan, controller: Controller, engine: Engine, say: Any
) -> None:
    job = plan.jobs[0]
    say(job, "failed", error="of an earlier call")
    controller.advance()
    engine.tell(job, "killed by SIGKILL")
    controller.advance()
    assert [attempt.job for attempt in engine.attempts].count(job.name) == 2


def test_what_is_lost_again_and_again_is_given_up_and_its_state_says_so(
    plan: Plan, tmp_path: Path, controller: Controller, engine: Engine
) -> None:
    job = plan.jobs[0]
    for _ in range(3):
        controller.advance()
        engine.tell(job, "killed by SIGKILL")
    controller.advance()
    assert words(controller)[0] == "failed"
    assert [attempt.job for attempt in engine.attempts].count(job.name) == 2
    state, _ = read_state(job.folder(tmp_path))
    assert state is not None
    assert state.standing == "failed"
    assert state.error == "killed by SIGKILL; given up after 2 attempts that got it no further"


def test_a_job_that_gains_ground_in_every_attempt_is_never_given_up(
    plan: Plan, controller: Controller, engine: Engine, say: Any
) -> None:
    job = plan.jobs[0]
    reached = [(1, 0.1), (1, 0.2), (2, 0.3), (2, 0.35), (2, 0.4)]
    for attempt, (epoch, done) in enumerate(reached, 1):
        controller.advance()
        say(job, "interrupted", attempt=attempt, epoch=epoch, done=done)
        engine.tell(job, "interrupted")
    for attempt in (6, 7):  # one that gets no further may be tried again
        controller.advance()
        assert words(controller)[0] == "interrupted"
        say(job, "interrupted", attempt=attempt, epoch=2, done=0.4)
        engine.tell(job, "interrupted")
    controller.advance()
    assert words(controller)[0] == "failed"


def test_steps_of_a_killed_process_are_no_gain(
    plan: Plan, tmp_path: Path, controller: Controller, engine: Engine, say: Any
) -> None:
    job = plan.jobs[0]
    for done in (0.1, 0.2, 0.3):
        controller.advance()
        say(job, "running", epoch=1, done=done)
        silence(job, tmp_path)
        engine.tell(job, "killed by SIGKILL")
    controller.advance()
    assert words(controller)[0] == "failed"
    assert [attempt.job for attempt in engine.attempts].count(job.name) == 2


def test_a_job_that_somebody_works_on_is_waited_for(
    plan: Plan, tmp_path: Path, controller: Controller, engine: Engine, say: Any, finish: Any
) -> None:
    first, second = plan.jobs
    say(first)
    say(second)
    controller.advance()
    assert not engine.attempts
    assert words(controller) == ["running", "running"]
    finish(first)
    say(first, "done")
    silence(second, tmp_path)
    controller.advance()
    assert [attempt.job for attempt in engine.attempts] == [second.name]
    assert words(controller) == ["done", "silent"]


def test_what_an_engine_holds_from_before_is_not_placed_again(
    plan: Plan, tmp_path: Path, engine: Engine
) -> None:
    engine.holds = {plan.jobs[0].name, "of another study"}
    with Controller(plan, tmp_path, engine) as controller:
        controller.advance()
        assert [attempt.job for attempt in engine.attempts] == [plan.jobs[1].name]
        engine.tell(plan.jobs[0])
        engine.tells["of another study"] = "ended"
        controller.advance()
    assert [attempt.job for attempt in engine.attempts][1:] == [plan.jobs[0].name]


def test_one_folder_has_one_controller(plan: Plan, tmp_path: Path, controller: Controller) -> None:
    with (
        pytest.raises(QatvalError, match="is in use by process"),
        Controller(plan, tmp_path, Engine()),
    ):
        pass


def test_a_folder_that_cannot_be_written_to_is_one_line(
    plan: Plan, tmp_path: Path, controller: Controller
) -> None:
    (tmp_path / "jobs").write_text("in the way")
    with pytest.raises(QatvalError, match=r"cannot write .*jobs"):
        controller.advance()


def silence(job: Job, out: Path) -> None:
    """Let the last word of a process have been long ago."""
    then = time.time() - SILENT_S - 1
    os.utime(job.folder(out) / STATE_NAME, (then, then))


RETRIES = 1
ENDS = ("done", "done without a word", "failed", "gained", "interrupted", "killed")
TELLING = ("now", "late", "twice", "never")


class Adversary(RuleBasedStateMachine):
    """Processes end in every way, and the engine tells of it in every way.

    No job ever has two processes, none is begun that is finished, attempts are bounded, and with an
    honest engine every study ends with what the files say.
    """

    @initialize(number=st.integers(1, 3))
    def begin(self, number: int) -> None:
        self.out = Path(tempfile.mkdtemp())
        self.jobs = {
            f"job{n}": Job(f"job{n}", ("baseline",), n, {"variant": "yolo10n"})
            for n in range(number)
        }
        self.alive: set[str] = set()
        self.late: list[str] = []
        self.restart(adopted=False)

    @rule(adopted=st.booleans())
    def restart(self, adopted: bool) -> None:
        """The controller is killed and started again; processes go on with or without it."""
        if hasattr(self, "controller"):
            self.controller.__exit__()
        self.begun: Counter[str] = Counter()
        self.gains: Counter[str] = Counter()
        self.failed: set[str] = set()
        self.engine = Engine(self.start)
        self.engine.holds = set(self.alive) if adopted else set()
        plan = Plan("2026", str(self.out), Resources(), tuple(self.jobs.values()))
        self.controller = Controller(plan, self.out, self.engine, retries=RETRIES)
        self.controller.__enter__()

    def start(self, attempt: Attempt) -> None:
        job = self.jobs[attempt.job]
        assert job.name not in self.alive, "two processes at one job"
        assert not finished(job, self.out), "a finished job is begun"
        assert job.name not in self.failed, "a failed job is begun in the same call"
        self.begun[job.name] += 1
        assert self.begun[job.name] <= (RETRIES + 1) * (self.gains[job.name] + 1)
        self.alive.add(job.name)
        before, _ = read_state(job.folder(self.out))
        number, epoch = (before.attempt, before.epoch) if before else (0, 0)
        state = JobState("running", number + 1, "elsewhere", 1, f"{number}", epoch=epoch)
        write_state(job.folder(self.out), state)

    @rule()
    def advance(self) -> None:
        self.controller.advance()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), how=st.sampled_from(ENDS), telling=st.sampled_from(TELLING))
    def end(self, data: st.DataObject, how: str, telling: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self._end(name, how)
        if telling in ("now", "twice"):
            self.engine.tells[name] = how
        if telling in ("late", "twice"):
            self.late.append(name)
        if telling == "never":
            self.engine.holds.discard(name)

    def _end(self, name: str, how: str) -> None:
        self.alive.remove(name)
        job = self.jobs[name]
        folder = job.folder(self.out)
        state, _ = read_state(folder)
        assert state is not None
        if how.startswith("done"):
            write_summary(job.run_root(self.out), build_summary("baseline"))
        if how == "gained":
            self.gains[name] += 1
        if how == "failed" and name in self.engine.holds and self.begun[name]:
            self.failed.add(name)  # one of an earlier controller is tried again
        last: Any = {"gained": "interrupted", "done without a word": "running", "killed": "running"}
        epoch = state.epoch + 2 * (how == "gained")
        fields = {"standing": last.get(how, how), "epoch": epoch}
        write_state(folder, JobState(**{**{f: getattr(state, f) for f in _FIELDS}, **fields}))

    @precondition(lambda self: self.late)
    @rule()
    def tell_late(self) -> None:
        """Of an end long ago, maybe of an attempt before the one that is held now."""
        self.engine.tells[self.late.pop(0)] = "ended"

    @rule()
    def fall_silent(self) -> None:
        """Time passes: who is alive writes, the dead do not."""
        for name, job in self.jobs.items():
            if name not in self.alive and (job.folder(self.out) / STATE_NAME).exists():
                silence(job, self.out)

    def teardown(self) -> None:
        if not hasattr(self, "controller"):
            return
        for _ in range(4 * len(self.jobs) + 4):
            for name in sorted(self.alive):
                self._end(name, "done")
            self.engine.tells |= dict.fromkeys(self.engine.holds, "ended")
            self.fall_silent()
            self.controller.advance()
        assert self.controller.finished
        for entry in self.controller.entries():
            assert (entry.word == "done") == finished(entry.job, self.out)
            assert entry.word in ("done", "failed")
        self.controller.__exit__()
        shutil.rmtree(self.out)


_FIELDS = ("attempt", "host", "pid", "started_at")

TestAdversary = Adversary.TestCase
TestAdversary.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
