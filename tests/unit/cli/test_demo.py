"""``qatval demo``, with a runner that leaves stored summaries in the place of training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qatval.cli.main import main
from qatval.core.summary import RunSummary, write_summary
from qatval.data.shapes import MANIFEST_NAME
from qatval.run import runner
from qatval.run.configuration import RunConfig
from qatval.testing import build_summary


class Runner:
    """Notes which seeds it is asked for, and is interrupted at some of them."""

    def __init__(self, *interrupted: int) -> None:
        self.asked: list[int] = []
        self._interrupted = list(interrupted)

    def __call__(self, config: RunConfig, progress: Any) -> list[RunSummary]:
        self.asked.append(config.seed)
        assert config.overwrite
        work = config.run_root / ".training"
        work.mkdir(parents=True, exist_ok=True)
        if config.seed in self._interrupted:
            self._interrupted.remove(config.seed)
            raise KeyboardInterrupt
        for method in config.methods:
            values = (0.41, 0.58 if method.name.startswith("ptq") else 0.64)
            declared = dict(zip(("method", "reference"), config.primary, strict=True))
            changes = {"primary": declared}
            summary = build_summary(method.name, config.seed, values, changes=changes)
            write_summary(config.root_of(method.name), summary)
        work.rmdir()
        return []


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def draw(root: Path) -> None:
        root.mkdir(exist_ok=True)
        (root / MANIFEST_NAME).write_text('{"name": "shapes"}')

    monkeypatch.setattr("qatval.data.shapes.draw_dataset", draw)
    places = ["--out", str(tmp_path / "demo"), "--data", str(tmp_path / "shapes")]

    def run(stand_in: Runner, *options: str) -> int:
        monkeypatch.setattr(runner, "run", stand_in)
        return main(["demo", *places, *options])

    return run


def test_a_finished_demo_is_replaced(demo: Any) -> None:
    for _ in range(2):
        whole = Runner()
        assert demo(whole) == 0
        assert whole.asked == [0, 1, 2]


@pytest.mark.parametrize("replaced", [False, True])
def test_an_interrupted_demo_goes_on_with_its_seed(replaced: bool, demo: Any) -> None:
    if replaced:
        demo(Runner())
    interrupted = Runner(1)
    assert demo(interrupted) == 75
    assert demo(interrupted) == 0
    assert interrupted.asked == [0, 1, 1, 2]


def test_seeds_that_are_not_there_are_run(demo: Any) -> None:
    interrupted = Runner(1)
    demo(interrupted)
    demo(interrupted, "--seeds", "2,0,1")
    assert interrupted.asked == [0, 1, 2, 1]


def test_restart_begins_with_the_first_seed(demo: Any) -> None:
    interrupted = Runner(1)
    demo(interrupted)
    demo(interrupted, "--restart")
    assert interrupted.asked == [0, 1, 0, 1, 2]


def test_it_asks_one_question_and_names_its_margin(
    demo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(Runner()) == 0
    said = " ".join(capsys.readouterr().out.split())
    sentences = re.findall(r"ema\+qc is better than ptq on 3 of 3 seeds[^;]*;[^;]*;([^;]*);", said)
    assert [sentence.strip() for sentence in sentences] == ["primary, p < 0.001"]
    assert "do not tell ema from baseline" in said
    assert "alike within 0.02" in said
