"""``qatval demo``, with an engine that leaves stored summaries in the place of training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qatval.cli.main import main
from qatval.core.summary import SUMMARY_NAME, write_summary
from qatval.data.shapes import MANIFEST_NAME
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.engines import local as module
from qatval.run.study.plan import Job, read_plan
from qatval.testing import build_summary

Demo = Callable[..., int]


class Engine:
    """Notes the jobs that it is given, and is interrupted at the seeds that it is told of."""

    interrupted: Sequence[int] = ()
    asked: list[Job]

    def __init__(self, resources: Resources, jobs: int | None = None) -> None:
        self.resources = resources
        self.places = (None,)
        self._ended: dict[str, str] = {}

    def place(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            out = Path(attempt.command[-2])
            (job,) = [job for job in read_plan(out).jobs if job.name == attempt.job]
            self.asked.append(job)
            if job.seed in self.interrupted:
                raise KeyboardInterrupt
            for name, root in job.run_roots(out).items():
                values = (0.41, 0.58 if name.startswith("ptq") else 0.64)
                declared = dict(zip(("method", "reference"), job.arguments["primary"], strict=True))
                changes = {"primary": declared}
                write_summary(root, build_summary(name, job.seed, values, changes=changes))
            self._ended[job.name] = "ended"

    def held(self) -> set[str]:
        return set(self._ended)

    def ended(self) -> dict[str, str]:
        told, self._ended = self._ended, {}
        return told

    def stop(self) -> str:
        return "stopped"


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    def draw(root: Path) -> None:
        for name in ("annotations", "train2017", "val2017"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            (root / "annotations" / f"instances_{split}2017.json").write_text("{}")
        (root / MANIFEST_NAME).write_text('{"name": "shapes"}')

    monkeypatch.setattr("qatval.data.shapes.draw_dataset", draw)
    monkeypatch.setattr(module, "LocalEngine", Engine)
    monkeypatch.setattr(module, "visible_gpus", lambda: ["0", "3"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    places = ["--out", str(tmp_path / "demo"), "--data", str(tmp_path / "shapes")]

    def run(*options: str, interrupted: Sequence[int] = ()) -> int:
        monkeypatch.setattr(Engine, "asked", [], raising=False)
        monkeypatch.setattr(Engine, "interrupted", interrupted)
        return main(["demo", *places, *options])

    return run


def seeds() -> list[int]:
    return [job.seed for job in Engine.asked]


def test_methods_of_a_seed_are_one_job(demo: Demo) -> None:
    assert demo() == 0
    assert seeds() == [0, 1, 2]
    assert {job.methods for job in Engine.asked} == {
        ("baseline", "ema", "ema+qc", "ptq", "ptq+shift")
    }


def test_a_finished_demo_is_told_again(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    demo()
    first = capsys.readouterr().out
    assert demo() == 0
    assert seeds() == []
    assert first.splitlines()[-5:] == capsys.readouterr().out.splitlines()[-5:]


def test_an_interrupted_demo_goes_on(demo: Demo) -> None:
    assert demo(interrupted=[1]) == 75
    assert demo() == 0
    assert seeds() == [1, 2]


def test_seeds_that_are_not_there_are_run(demo: Demo) -> None:
    demo()
    assert demo("--seeds", "3,0,1") == 0
    assert seeds() == [3]


def test_restart_begins_anew_and_touches_nothing_else(demo: Demo, tmp_path: Path) -> None:
    demo(interrupted=[1])
    own = tmp_path / "demo" / "notes.txt"
    own.write_text("mine")
    assert demo("--restart") == 0
    assert seeds() == [0, 1, 2]
    assert own.read_text() == "mine"


def test_restart_leaves_a_folder_alone_that_is_no_study(demo: Demo, tmp_path: Path) -> None:
    other = tmp_path / "demo" / "runs" / "x" / SUMMARY_NAME
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    assert demo("--restart") == 0
    assert other.exists()


def test_another_checkpoint_in_the_same_folder_is_refused(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo()
    (tmp_path / "m.safetensors").write_text("weights")
    assert demo("--checkpoint", str(tmp_path / "m.safetensors")) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "trainings.smoke.checkpoint: it was not given" in line
    assert "another --out" in line


@pytest.mark.parametrize(
    ("options", "device", "visible"),
    [((), "0", ""), (("--device", "cpu"), "cpu", ""), (("--device", "1,0"), "0,1", "3,0")],
)
def test_it_runs_on_the_device_that_is_named(
    options: Sequence[str],
    device: str,
    visible: str,
    demo: Demo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    assert demo(*options) == 0
    assert Engine.asked[0].arguments["device"] == device
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_a_gpu_that_is_not_there_is_one_line(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo("--device", "2") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "of the 2 GPUs" in line


def test_it_asks_one_question_and_names_its_margin(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo() == 0
    said = " ".join(capsys.readouterr().out.split())
    sentences = re.findall(r"ema\+qc is better than ptq on 3 of 3 seeds[^;]*;[^;]*;([^;]*);", said)
    assert [sentence.strip() for sentence in sentences] == ["primary, p < 0.001"]
    assert "do not tell ema from baseline" in said
    assert "alike within 0.02" in said
