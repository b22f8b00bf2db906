"""A real run that is interrupted again and again comes to what it would have come to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qatval.core.progress import Progress
from qatval.core.summary import RunSummary, read_summary
from qatval.run import runner
from qatval.run.configuration import RunConfig, configure

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

EMBEDDED = Path(__file__).parents[2] / "models" / "shapes" / "yolo10n.safetensors"

# In the order of a run; each is the first that its attempt gets to and no earlier one did.
STAGES = (
    "subset",
    "FP32 checkpoint",
    "untrained model",
    "start of training",
    "training",
    "baseline: freezing",
    "baseline: second protocol",
    "ema+qc: correction",
    "ema+qc: final evaluation",
    "ptq: final evaluation",
)

OF_ONE_RUN = (
    "run_id",
    "created_at",
    "git",
    "timings",
    "files",
    "resumed",
    "history",
    "training",
    "artifacts",
)


class InterruptedAt(Progress):
    """Interrupts when a stage begins."""

    def __init__(self, stage: str | None) -> None:
        super().__init__("", quiet=True)
        self._at = stage

    def stage(self, name: str, total: int | None = None) -> None:
        if name == self._at:
            raise KeyboardInterrupt
        super().stage(name, total)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    from qatval.data.shapes import draw_dataset

    folder = tmp_path_factory.mktemp("interruptions")
    draw_dataset(folder / "shapes", train_images=8, val_images=4, size=64)
    return configure(
        variant="yolo10n",
        methods=["baseline", "ema+qc", "ptq"],
        profile="smoke",
        run_root=folder / "run",
        coco_root=folder / "shapes",
        checkpoint=EMBEDDED,
        device="cpu",
        cache_dir=folder / "cache",
        epochs=1,
        batch=4,
        imgsz=64,
    )


def result(summary: RunSummary) -> dict[str, Any]:
    """What a run comes to, without what took how long and what it is called."""
    root = Path(summary.artifacts.run_root)
    recorded: Mapping[str, Any] = read_summary(root)[1]
    found = {name: value for name, value in recorded.items() if name not in OF_ONE_RUN}
    files = [file for name in ("weights", "predictions") if (file := recorded["artifacts"][name])]
    found["digests"] = [hashlib.sha256((root / file).read_bytes()).hexdigest() for file in files]
    found["values"] = [epoch["metrics"] for epoch in recorded.get("history") or ()]
    return found


def test_interrupted_in_every_stage(config: RunConfig, tmp_path: Path) -> None:
    whole = runner.run(config, Progress("", quiet=True))
    again = dataclasses.replace(config, run_root=tmp_path / "again")
    for stage in STAGES:
        with pytest.raises(KeyboardInterrupt, match=r"interrupted by SIGINT.*: the same command"):
            runner.run(again, InterruptedAt(stage))
    resumed = runner.run(again, InterruptedAt(None))
    assert [result(summary) for summary in resumed] == [result(summary) for summary in whole]
    assert whole[0].resumed == ()
    assert len({summary.training.trajectory for summary in resumed[:2]}) == 1
    interrupted = [[one.stage for one in summary.resumed] for summary in resumed]
    assert interrupted[0] == ["freezing", "second protocol"]
    assert interrupted[2][-1] == "final evaluation"
    assert list(tmp_path.rglob(".*")) == []
