"""``qatval study``, with an engine that leaves stored summaries in the place of training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from qatval.cli.main import main
from qatval.core.summary import write_summary
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.engines import local as engines
from qatval.run.study.plan import read_plan
from qatval.run.study.state import JobState, read_state, write_state
from qatval.testing import build_summary

FILE = """
variants = ["yolo10n"]
methods = ["baseline", "ema"]
seeds = {seeds}
dataset = "embedded"
profile = "smoke"
margin = 0.02
"""


class Engine:
    """Finishes every job when it is placed, but for seeds that fail, die or meet a signal."""

    def __init__(self, out: Path, failing: Collection[int], dying: Collection[int]) -> None:
        self.resources, self.places = Resources(), (None,)
        self.placed: list[str] = []
        self.signalled: str | None = None
        self._out, self._failing, self._dying = out, failing, dying
        self._ended: dict[str, str] = {}

    def place(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            self.placed.append(attempt.job)
            self._run(attempt.job)
            self._ended[attempt.job] = "killed by SIGKILL"
        if self.signalled is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def _run(self, name: str) -> None:
        job = next(job for job in read_plan(self._out).jobs if job.name == name)
        before, _ = read_state(job.folder(self._out))
        number = before.attempt if before else 0
        state = JobState("done", number + 1, "elsewhere", 1, "now", value=0.6)
        if job.seed in self._dying:
            return
        if job.seed in self._failing:
            state.standing, state.error = "failed", "out of memory: try --batch 8"
        else:
            for method, root in job.run_roots(self._out).items():
                write_summary(root, build_summary(method, job.seed))
        write_state(job.folder(self._out), state)

    def held(self) -> set[str]:
        return {*self._ended}

    def ended(self) -> dict[str, str]:
        told, self._ended = self._ended, {}
        return told

    def stop(self) -> str:
        self.signalled = "stopped"
        return "2 running processes ended"


@pytest.fixture
def study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeded_signals: None
) -> Callable[..., tuple[int, Engine]]:
    def run(
        *options: str,
        seeds: Sequence[int] = (0, 1),
        failing: Collection[int] = (),
        dying: Collection[int] = (),
        signalled: bool = False,
    ) -> tuple[int, Engine]:
        file, out = tmp_path / "study.toml", tmp_path / "out"
        file.write_text(FILE.format(seeds=list(seeds)))
        engine = Engine(out, failing, dying)
        engine.signalled = "" if signalled else None
        monkeypatch.setattr(engines, "LocalEngine", lambda *_: engine)
        return main(["study", str(file), "--out", str(out), *options]), engine

    return run


def test_a_study_ends_in_the_comparison(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, engine = study()
    assert code == 0
    assert len(engine.placed) == 2
    said = capsys.readouterr()
    assert "2 jobs, 4 runs; 0 done, 2 to run" in said.out
    assert "ema against baseline" in said.out or "ema from baseline" in said.out
    for suffix in ("json", "md", "html"):
        assert (tmp_path / "out" / f"comparison.{suffix}").exists()
    assert str(tmp_path / "out" / "comparison.html") in said.out
    assert "2 done (2 jobs)" in said.err


def test_more_seeds_run_only_what_is_new(study: Any) -> None:
    study()
    code, engine = study(seeds=[0, 1, 2])
    assert code == 0
    assert [name.split("/")[1] for name in engine.placed] == ["seed2"]


def test_what_was_not_asked_for_now_is_not_compared(
    study: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study(seeds=[0, 1, 2])
    capsys.readouterr()
    code, engine = study(seeds=[0, 1])
    assert (code, engine.placed) == (0, [])
    said = capsys.readouterr().out
    assert "2 jobs, 4 runs; all are done" in said
    assert "seed 2" not in said


def test_what_fails_is_told_with_its_log_and_the_rest_goes_on(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, engine = study("--retries", "1", seeds=[0, 1, 2, 3], failing=[1], dying=[2])
    assert code == 1
    assert len(engine.placed) == 5
    told = [said for said in capsys.readouterr().err.splitlines() if said.startswith("qatval:")]
    logs = [tmp_path / f"out/jobs/yolo10n-smoke-w4a16/seed{n}/baseline/log.txt" for n in (1, 2)]
    job = "yolo10n-smoke-w4a16/seed{}/baseline: failed, "
    assert told == [
        f"qatval: {job.format(1)}out of memory: try --batch 8; {logs[0]}",
        f"qatval: {job.format(2)}killed by SIGKILL; given up after 2 attempts that got it no "
        f"further; {logs[1]}",
    ]
    assert (tmp_path / "out" / "comparison.md").exists()
    assert study(seeds=[0, 1, 2, 3])[0] == 0  # another call tries them again


def test_where_nothing_was_completed_there_is_nothing_to_compare(
    study: Any, tmp_path: Path
) -> None:
    assert study(failing=[0, 1])[0] == 1
    assert not (tmp_path / "out" / "comparison.md").exists()


def test_a_signal_stops_the_engine_and_the_same_command_goes_on(
    study: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, engine = study(signalled=True)
    assert code == 75
    assert engine.signalled == "stopped"
    (said,) = [it for it in capsys.readouterr().err.splitlines() if it.startswith("qatval:")]
    assert said == (
        "qatval: interrupted by SIGTERM: 2 running processes ended; the same command goes on"
    )
    code, engine = study()
    assert (code, engine.placed) == (0, [])


def test_a_dry_run_leaves_nothing(study: Any, tmp_path: Path) -> None:
    code, engine = study("--dry-run")
    assert (code, engine.placed) == (0, [])
    assert not (tmp_path / "out").exists()


def test_a_status_is_read_from_files(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(failing=[1])
    capsys.readouterr()
    assert main(["study", "status", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "yolo10n-smoke-w4a16/seed1/baseline: failed, out of memory: try --batch 8",
        "1 done, 1 failed (2 jobs)",
    ]


@pytest.mark.parametrize("content", [None, "", "{", '{"jobs": 3}'])
def test_a_folder_without_a_plan_that_can_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    assert main(["study", "status", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("qatval: error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "qatval study status DIR"),
        (["a.toml"], "give --out DIR"),
        (["a.toml", "b.toml", "--out", "x"], "expected one study file, got 'a.toml' and 'b.toml'"),
        (["a.toml", "--out", "x", "--launcher", "ray", "--jobs", "2"], "--jobs is for"),
        (["a.toml", "--out", "x", "--retries", "-1"], "at least 0, got -1"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(["study", *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_another_command_at_the_same_folder_is_refused(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qatval.run.claim import Claim

    with Claim() as claim:
        claim.add(tmp_path / "out")
        assert study()[0] == 1
    assert "out is in use by process" in capsys.readouterr().err
    assert not (tmp_path / "out" / "study.json").exists()
