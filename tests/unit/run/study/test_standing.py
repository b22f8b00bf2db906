"""How jobs stand is read from their files, whatever was killed while it wrote them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qatval.run.study.plan import Job, Plan
from qatval.run.study.standing import Word, entries, entry
from qatval.run.study.state import SILENT_S, STATE_NAME

Say = Callable[..., object]


@pytest.fixture
def job(plan: Plan) -> Job:
    return plan.jobs[0]


def age(job: Job, out: Path) -> None:
    then = time.time() - SILENT_S - 1
    os.utime(job.folder(out) / STATE_NAME, (then, then))


def test_a_job_that_nobody_has_begun_waits(plan: Plan, tmp_path: Path) -> None:
    assert [found.word for found in entries(plan, tmp_path)] == ["waiting", "waiting"]


@pytest.mark.parametrize("standing", ["done", "failed", "interrupted", "running"])
def test_a_job_stands_as_its_process_says(
    job: Job, tmp_path: Path, say: Say, finish: Callable[..., None], standing: Word
) -> None:
    state = say(job, standing)
    if standing == "done":
        finish(job)
    found = entry(job, tmp_path)
    assert (found.word, found.state) == (standing, state)
    assert found.written == pytest.approx(time.time(), abs=5)


def test_what_is_done_waits_again_when_a_run_of_it_is_removed(
    job: Job, tmp_path: Path, say: Say, finish: Callable[..., None]
) -> None:
    say(job, "done")
    finish(job)
    shutil.rmtree(job.run_roots(tmp_path)["ema"])
    assert entry(job, tmp_path).word == "waiting"


def test_a_process_that_has_not_written_for_long_is_silent(
    job: Job, tmp_path: Path, say: Say
) -> None:
    say(job)
    age(job, tmp_path)
    assert entry(job, tmp_path).word == "silent"


def test_a_process_of_this_machine_that_is_gone_is_silent_at_once(
    job: Job, tmp_path: Path, say: Say
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    say(job, host=socket.gethostname(), pid=os.getpid())
    assert entry(job, tmp_path).word == "running"
    say(job, host=socket.gethostname(), pid=gone.pid)
    assert entry(job, tmp_path).word == "silent"


@pytest.mark.parametrize("standing", ["running", "interrupted", "failed"])
def test_a_job_whose_runs_are_finished_is_done_whatever_was_said_last(
    job: Job, tmp_path: Path, say: Say, finish: Callable[..., None], standing: Word
) -> None:
    say(job, standing)
    age(job, tmp_path)
    finish(job, "baseline")
    assert entry(job, tmp_path).word != "done"
    finish(job)
    assert entry(job, tmp_path).word == "done"
    (job.run_root(tmp_path) / ".training").mkdir()  # which the next attempt removes
    assert entry(job, tmp_path).word != "done"


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"standing": "idle"}', b"\xff", b"[" * 100_001, b'{"pid": -1}']
)
def test_a_damaged_state_is_none(job: Job, tmp_path: Path, content: bytes) -> None:
    folder = job.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / STATE_NAME).write_bytes(content)
    assert entry(job, tmp_path).word == "waiting"


@pytest.mark.parametrize("pid", [0, -1, 2**40])
def test_no_number_of_a_process_is_too_odd(job: Job, tmp_path: Path, say: Say, pid: int) -> None:
    say(job, host=socket.gethostname(), pid=pid)
    assert entry(job, tmp_path).word in ("running", "silent")
