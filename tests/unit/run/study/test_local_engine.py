"""Processes of this machine: places, words for how they end, and what is left of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qatval.core import interruption
from qatval.core.environment import available_cores
from qatval.core.errors import QatvalError
from qatval.run.study.engines import Attempt, Resources, process
from qatval.run.study.engines.local import LocalEngine

_DEADLINE_S = 20


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., Attempt]:
    def make(job: str, program: str, **environment: str) -> Attempt:
        command = (sys.executable, "-c", program)
        return Attempt(job, command, environment, tmp_path, tmp_path / f"{job}.txt")

    return make


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(Resources())
    yield made
    made.stop()


def until(engine: LocalEngine, *jobs: str) -> dict[str, str]:
    """Return how jobs have ended, once all of them have."""
    told: dict[str, str] = {}
    deadline = time.monotonic() + _DEADLINE_S
    while not told.keys() >= {*jobs}:
        told |= engine.ended()
        assert time.monotonic() < deadline, told
        time.sleep(0.01)
    return told


def appears(file: Path) -> str:
    deadline = time.monotonic() + _DEADLINE_S
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file.read_text().strip()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("", "ended"),
        ("raise SystemExit(75)", "interrupted"),
        ("raise SystemExit(1)", "ended with exit code 1"),
        ("import os; os.kill(os.getpid(), 9)", "memory has run out"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import os; os.kill(os.getpid(), 2)", "killed by SIGINT"),
        ("import os; os.kill(os.getpid(), 40)", "killed by signal 40"),
    ],
)
@pytest.mark.usefixtures("heeded_signals")
def test_how_a_process_has_ended_is_said_in_words(
    engine: LocalEngine, attempt: Callable[..., Attempt], program: str, words: str
) -> None:
    engine.place([attempt("one", program)])
    assert engine.held() == {"one"}
    assert words in until(engine, "one")["one"]
    assert engine.held() == set()
    assert engine.ended() == {}


def test_a_program_that_cannot_be_started_has_ended(
    engine: LocalEngine, tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    missing = Attempt("missing", ("/nowhere/python",), {}, tmp_path, tmp_path / "log.txt")
    engine.place([missing, *(attempt(f"job{n}", "") for n in range(len(engine.places) + 1))])
    told = until(engine, "missing", "job0")
    assert told["missing"].startswith("could not be started (")


def test_no_more_run_at_a_time_than_there_are_places(
    tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    engine = LocalEngine(Resources(), jobs=1)
    program = "import os, time; os.mkdir('alone'); time.sleep(0.05); os.rmdir('alone')"
    engine.place([attempt(f"job{n}", program) for n in range(4)])
    told = until(engine, *(f"job{n}" for n in range(4)))
    assert {*told.values()} == {"ended"}


def test_a_process_finds_its_environment_and_a_session_of_its_own(
    engine: LocalEngine, tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    program = "import os; print(os.environ['OMP_NUM_THREADS'], os.getsid(0) == os.getpid())"
    for _ in range(2):
        engine.place([attempt("one", program, OMP_NUM_THREADS="3")])
        until(engine, "one")
    assert (tmp_path / "one.txt").read_text() == "3 True\n" * 2  # a log goes on


def test_what_a_killed_process_has_started_ends_with_it(
    engine: LocalEngine, tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    program = "import os, subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    engine.place([attempt("one", f"{program}; os.kill(os.getpid(), 9)")])
    until(engine, "one")
    left = int(appears(tmp_path / "one.txt"))
    deadline = time.monotonic() + _DEADLINE_S
    while is_alive(left):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_that_are_stopped_may_save_what_they_have(
    tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    engine = LocalEngine(Resources(), jobs=1)
    program = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.2)
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
    engine.place([attempt("one", program), attempt("queued", "open('begun', 'w')")])
    appears(tmp_path / "one.txt")
    assert engine.stop() == "1 running process ended, with all kept"
    assert (tmp_path / "saved").exists()
    assert engine.ended() == {"one": "interrupted"}
    assert engine.held() == set()
    assert not (tmp_path / "begun").exists()


def test_who_does_not_end_is_killed_and_leaves_nothing_to_be_waited_for(
    tmp_path: Path, attempt: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PATIENCE_S", 0.1)
    engine = LocalEngine(Resources(), jobs=1)
    deaf = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=1)"
    engine.place([attempt("one", f"{deaf}; time.sleep(60)")])
    pid = int(appears(tmp_path / "one.txt"))
    assert "but for the last steps of 1 that had to be killed" in engine.stop()
    assert not Path(f"/proc/{pid}").exists()


def test_a_signal_that_comes_while_one_is_started_leaves_none_unknown(
    tmp_path: Path,
    attempt: Callable[..., Attempt],
    monkeypatch: pytest.MonkeyPatch,
    heeded_signals: None,
) -> None:
    started = process.start

    def start(*given: Any) -> Any:
        running = started(*given)
        os.kill(os.getpid(), signal.SIGTERM)
        return running

    monkeypatch.setattr(process, "start", start)
    engine = LocalEngine(Resources(), jobs=1)
    with interruption.listening():
        with pytest.raises(interruption.Interrupted):
            engine.place([attempt("one", "import time; time.sleep(60)")])
        assert engine.held() == {"one"}
        assert engine.stop().startswith("1 running process ended")


def test_cores_are_divided_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qatval.run.study.engines.local.available_cores", lambda: 8)
    assert len(LocalEngine(Resources(threads=3)).places) == 2
    assert len(LocalEngine(Resources(threads=1), jobs=5).places) == 5
    assert len(LocalEngine(Resources(threads=16)).places) == 1  # it takes longer
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    assert len(LocalEngine(Resources(memory_gb=memory / 3)).places) == 3
    assert len(LocalEngine(Resources(memory_gb=2 * memory)).places) == 1


@pytest.mark.parametrize(
    ("gpus", "places"),
    [
        (1, ["4", "5", "6"]),
        (0.5, ["4", "5", "6", "4", "5", "6"]),
        (0.33, ["4", "5", "6"] * 3),
        (2, ["4,5"]),
    ],
)
def test_gpus_are_shared_one_by_one(
    gpus: float, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6")
    assert [*LocalEngine(Resources(gpus=gpus)).places] == places


def test_each_process_sees_its_gpu_alone(
    tmp_path: Path, attempt: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    engine = LocalEngine(Resources(gpus=1))
    program = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)"
    engine.place([attempt("one", program), attempt("two", program)])
    until(engine, "one", "two")
    assert {(tmp_path / f"{name}.txt").read_text() for name in ("one", "two")} == {"4\n", "5\n"}


@pytest.mark.parametrize("visible", ["", "-1", "0"])
def test_gpus_that_are_not_there_are_refused(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(QatvalError, match="takes 2 GPUs, and this machine has"):
        LocalEngine(Resources(gpus=2))


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 0\necho 1\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert LocalEngine(Resources(gpus=1)).places == ("0", "1")
    listing.unlink()
    with pytest.raises(QatvalError, match="this machine has 0"):
        LocalEngine(Resources(gpus=1))


def test_the_cores_are_those_that_the_process_may_use() -> None:
    assert len(LocalEngine(Resources()).places) == available_cores()
