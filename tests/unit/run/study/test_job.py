"""An attempt at a job as its files tell it, with stand-ins for what trains."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qatval.core import interruption
from qatval.core.errors import QatvalError
from qatval.core.progress import Progress
from qatval.core.summary import RunSummary, write_summary
from qatval.run.claim import Claim
from qatval.run.configuration import RunConfig
from qatval.run.study import job as attempts
from qatval.run.study.engines import Attempt
from qatval.run.study.plan import Job, Plan, write_plan
from qatval.run.study.state import JobState, read_state
from qatval.testing import build_summary

_DEADLINE_S = 30

Run = Callable[[RunConfig, Progress], list[RunSummary]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    settings = {"variant": "yolo10n", "profile": "smoke", "device": "cpu", "epochs": 4}
    return Job("tiny/seed0/baseline", ("baseline", "ema"), 0, settings)


@pytest.fixture
def out(plan: Plan, job: Job, tmp_path: Path) -> Path:
    write_plan(Plan(plan.created_at, str(tmp_path), plan.resources, (job,)), tmp_path)
    return tmp_path


@pytest.fixture
def attempt(out: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Attempt the job with something else in the place of training."""
    monkeypatch.chdir(out)
    monkeypatch.setattr(Job, "draw", lambda self, out: None)
    monkeypatch.setattr(attempts, "remember", lambda *_: None)
    monkeypatch.setattr(attempts, "BEAT_S", 0.02)
    monkeypatch.setattr(attempts, "_LOOK_S", 0.01)

    def run(train: Run = trained, name: str = job.name) -> int:
        monkeypatch.setattr(attempts.runner, "run", train)
        return attempts.main([str(out), name])

    return run


def trained(config: RunConfig, progress: Progress) -> list[RunSummary]:
    summaries = []
    for method in config.methods:
        summaries.append(build_summary(method.name, config.seed))
        write_summary(config.root_of(method.name), summaries[-1])
    return summaries


def state_of(job: Job, out: Path) -> JobState:
    state, _ = read_state(job.folder(out))
    assert state is not None
    return state


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_that_is_done_says_so(job: Job, out: Path, attempt: Callable[..., int]) -> None:
    assert attempt() == 0
    state = state_of(job, out)
    assert (state.standing, state.attempt, state.pid) == ("done", 1, os.getpid())
    assert (state.device, state.epochs, state.error) == ("cpu", 4, None)
    assert state.value == build_summary("baseline").metrics.final_value
    assert attempt(pytest.fail) == 0  # there is nothing left to do
    assert state_of(job, out).attempt == 2


def test_how_far_it_is_can_be_read_while_it_runs(
    job: Job, out: Path, attempt: Callable[..., int]
) -> None:
    seen = []

    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        progress.stage("training", 40)
        for step in (11, 12):
            progress.step(step, epoch=2, loss=1.0, **{"mAP raw": 0.3, "mAP ema": 0.4})
            time.sleep(0.1)
        until(lambda: state_of(job, out).done == 0.3)
        seen.append(state_of(job, out))
        progress.stage("correction")
        until(lambda: state_of(job, out).stage == "correction")
        seen.append(state_of(job, out))
        return trained(config, progress)

    assert attempt(train) == 0
    training, correction = seen
    assert (training.standing, training.stage) == ("running", "training")
    assert (training.epoch, training.epochs, training.value) == (2, 4, 0.3)
    assert training.left_s == pytest.approx(28 * 0.1, rel=0.8)
    assert training.seconds > 0.1
    assert (correction.epoch, correction.done, correction.left_s) == (2, None, None)


def test_a_new_stage_is_told_before_the_next_beat(
    job: Job, out: Path, attempt: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "BEAT_S", 3600.0)

    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        progress.stage("training", 40)
        until(lambda: state_of(job, out).stage == "training")
        return trained(config, progress)

    monkeypatch.setattr(attempts.runner, "run", train)
    assert attempts.main([str(out), job.name]) == 0


def test_seconds_of_all_attempts_add_up(job: Job, out: Path, attempt: Callable[..., int]) -> None:
    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        time.sleep(0.3)
        raise QatvalError("no such thing")

    assert attempt(train) == attempt(train) == 1
    assert 0.5 < state_of(job, out).seconds < 10


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (QatvalError("checkpoint x.pt not found"), "checkpoint x.pt not found"),
        (OSError(28, "No space left on device"), "a disk is full"),
        (RuntimeError("of a\nlibrary"), r"RuntimeError: of a\nlibrary"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_a_job_that_fails_says_why_in_a_line(
    job: Job, out: Path, attempt: Callable[..., int], error: BaseException, said: str
) -> None:
    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        raise error

    assert attempt(train) == 1
    state = state_of(job, out)
    assert state.standing == "failed"
    assert state.error is not None
    assert state.error.startswith(said)


def test_a_signal_interrupts_a_job(
    job: Job, out: Path, attempt: Callable[..., int], heeded_signals: None
) -> None:
    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        os.kill(os.getpid(), signal.SIGTERM)
        progress.step(1)
        pytest.fail("goes on")

    assert attempt(train) == interruption.EXIT_CODE
    assert state_of(job, out).standing == "interrupted"


def test_a_signal_that_comes_with_the_last_result_does_not_take_it_back(
    job: Job, out: Path, attempt: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    join = attempts.threading.Thread.join
    monkeypatch.setattr(attempts.threading.Thread, "join", lambda self: (late(), join(self))[1])
    assert attempt() == 0
    assert state_of(job, out).standing == "done"


def test_nothing_is_written_after_the_last_word(
    job: Job, out: Path, attempt: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, slow = attempts.write_state, threading.Event()

    def write(folder: Path, state: JobState) -> None:
        if threading.current_thread() is not threading.main_thread():
            slow.set()
            time.sleep(0.2)  # the last word comes meanwhile
        written(folder, state)

    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        assert slow.wait(_DEADLINE_S)
        return trained(config, progress)

    monkeypatch.setattr(attempts, "write_state", write)
    assert attempt(train) == 0
    time.sleep(0.4)
    assert state_of(job, out).standing == "done"


def test_a_second_process_waits_and_leaves_the_job_alone(
    job: Job, out: Path, attempt: Callable[..., int], monkeypatch: pytest.MonkeyPatch, say: Any
) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_S", 0.1)
    with Claim() as claim:
        claim.add(job.folder(out))
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert attempt(pytest.fail) == interruption.EXIT_CODE
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    state = say(job)  # by a machine whose locks do not reach this one
    assert attempt(pytest.fail) == interruption.EXIT_CODE
    assert state_of(job, out) == state


def test_a_second_process_goes_on_when_the_first_lets_go(
    job: Job, out: Path, attempt: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claim()
    claim.add(job.folder(out))
    monkeypatch.setattr(attempts.time, "sleep", lambda _: claim.release())
    assert attempt() == 0


def test_a_full_disk_costs_no_beat_but_the_one(
    job: Job, out: Path, attempt: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, full = attempts.write_state, [True]

    def write(folder: Path, state: JobState) -> None:
        if full and state.stage == "training":
            full.pop()
            raise QatvalError("a disk is full")
        written(folder, state)

    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        progress.stage("training", 2)
        until(lambda: state_of(job, out).stage == "training")
        return trained(config, progress)

    monkeypatch.setattr(attempts, "write_state", write)
    assert attempt(train) == 0


def test_a_folder_that_is_removed_is_not_made_again(
    job: Job, out: Path, attempt: Callable[..., int]
) -> None:
    def train(config: RunConfig, progress: Progress) -> list[RunSummary]:
        (out / "jobs").rename(out / "moved")
        time.sleep(0.1)
        return []

    assert attempt(train) == 1
    assert not (out / "jobs").exists()


@pytest.mark.parametrize("missing", ["a job", "a plan", "a folder"])
def test_what_is_missing_is_one_line(
    missing: str,
    job: Job,
    out: Path,
    plan: Plan,
    attempt: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    name = job.name
    if missing == "a job":
        name = "another"
    elif missing == "a plan":
        (out / "study.json").unlink()
    else:
        write_plan(Plan(plan.created_at, "/nowhere", plan.resources, (job,)), out)
    assert attempt(pytest.fail, name) == 1
    said = capfd.readouterr().err
    assert said.startswith("qatval: error: ")
    assert said.count("\n") == 1


ORPHAN = """
import os, subprocess, sys, time
from qatval.run.study import job
from qatval.run.study.plan import Job
job._LOOK_S = 0.05
Job.draw = lambda self, out: None
def train(config, progress):
    while True:
        progress.step(1)
        time.sleep(0.01)
job.runner.run = train
sys.exit(job.main(sys.argv[1:]))
"""
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True).wait()
"""


def test_a_process_whose_parent_is_gone_saves_and_ends(job: Job, out: Path) -> None:
    command = [sys.executable, "-c", PARENT, ORPHAN, str(out), job.name]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        until(lambda: read_state(job.folder(out))[0])
        pid = state_of(job, out).pid
        parent.kill()
    try:
        until(lambda: state_of(job, out).standing == "interrupted")
    finally:
        if state_of(job, out).standing == "running":
            os.kill(pid, signal.SIGKILL)


def test_a_process_whose_parent_was_gone_before_it_looked_ends_as_well(job: Job, out: Path) -> None:
    attempt = Attempt(
        job.name, (sys.executable, "-c", ORPHAN, str(out), job.name), {}, out, out / "log.txt"
    )
    program = f"""
from pathlib import PosixPath
from qatval.run.study.engines import Attempt, process
print(process.start({attempt!r}).pid, flush=True)
import os; os._exit(0)
"""
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    try:
        until(lambda: read_state(job.folder(out))[0])
        until(lambda: state_of(job, out).standing == "interrupted")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started.stdout), signal.SIGKILL)
