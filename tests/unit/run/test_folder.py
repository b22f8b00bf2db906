"""A run folder's life: incomplete from its first second, finished or explained at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qatval.core.errors import QatvalError
from qatval.core.schema import violations
from qatval.core.summary import RunError, RunSummary, load_summary
from qatval.run.configuration import configure
from qatval.run.folder import RunFolder, publish
from qatval.run.record import announced, finished


@pytest.fixture
def summary(tmp_path: Path) -> RunSummary:
    """A summary as it is before a run."""
    config = configure(
        variant="yolo10n",
        methods=["ema"],
        profile="smoke",
        run_root=tmp_path,
        coco_root=tmp_path / "coco",
    )
    return announced(config, config.methods[0])


def claim(path: Path, summary: RunSummary, **options: Any) -> RunFolder:
    return RunFolder(path, "yolo10n-ema-smoke-seed0", summary, **options)


def done(summary: RunSummary) -> RunSummary:
    """What a run measured, with the verdict on it."""
    return finished(summary, [0.6, 0.5, 0.55], [])


def test_says_incomplete_at_once(tmp_path: Path, summary: RunSummary) -> None:
    claim(tmp_path / "run", summary)
    found = load_summary(tmp_path / "run")
    assert found.status == "incomplete"
    assert found.error is not None
    assert found.error.message == "the run has not finished"


def test_stage_is_on_disk_when_it_begins(tmp_path: Path, summary: RunSummary) -> None:
    folder = claim(tmp_path, summary)
    folder.enter("training")
    found = load_summary(tmp_path).error
    assert found is not None
    assert found.stage == "training"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (QatvalError("no such file"), "no such file"),
        (KeyboardInterrupt(), "interrupted"),
        (ValueError(), "ValueError"),
    ],
)
def test_failure_is_recorded_with_its_stage(
    error: BaseException, message: str, tmp_path: Path, summary: RunSummary
) -> None:
    folder = claim(tmp_path, summary)
    folder.enter("training")
    folder.fail(error)
    found = load_summary(tmp_path)
    assert found.status == "incomplete"
    assert found.error == RunError(type=type(error).__name__, message=message, stage="training")
    assert message in (tmp_path / "summary.md").read_text()


def test_finish_replaces_the_incomplete_summary(tmp_path: Path, summary: RunSummary) -> None:
    folder = claim(tmp_path, summary)
    folder.enter("training")
    folder.finish(done(summary))
    found = load_summary(tmp_path)
    assert found.status == "completed-success"
    assert found.error is None
    assert (found.metrics.best_value, found.metrics.final_value) == (0.6, 0.55)
    assert found.metrics.best_epoch == 0
    assert set(found.timings or ()) == {"start", "training", "total"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_finished_run_is_kept(tmp_path: Path, summary: RunSummary) -> None:
    claim(tmp_path, summary).finish(done(summary))
    before = (tmp_path / "run_summary.json").read_bytes()
    with pytest.raises(QatvalError, match=r"already holds a finished run .*--overwrite"):
        claim(tmp_path, summary)
    assert (tmp_path / "run_summary.json").read_bytes() == before


def test_overwrite_removes_what_the_earlier_run_left(tmp_path: Path, summary: RunSummary) -> None:
    claim(tmp_path, summary).finish(done(summary))
    (tmp_path / "ultralytics" / "old").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("the user's own")
    claim(tmp_path, summary, overwrite=True)
    assert not (tmp_path / "ultralytics").exists()
    assert not (tmp_path / "summary.md").exists()
    assert (tmp_path / "notes.txt").exists()
    assert load_summary(tmp_path).status == "incomplete"


def test_an_incomplete_run_may_be_tried_again(tmp_path: Path, summary: RunSummary) -> None:
    claim(tmp_path, summary).fail(ValueError("x"))
    claim(tmp_path, summary)


def test_an_unreadable_summary_is_not_lost(tmp_path: Path, summary: RunSummary) -> None:
    (tmp_path / "run_summary.json").write_text("{")
    with pytest.raises(QatvalError, match=r"unreadable summary: .*--overwrite"):
        claim(tmp_path, summary)
    assert (tmp_path / "run_summary.json").read_text() == "{"


def test_folder_that_cannot_be_made(tmp_path: Path, summary: RunSummary) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(QatvalError, match=r"cannot write .*: .*; give a folder"):
        claim(blocked / "run", summary)


def test_a_summary_that_breaks_the_schema_is_never_written(
    tmp_path: Path, summary: RunSummary
) -> None:
    folder = claim(tmp_path, summary)
    with pytest.raises(ValueError, match="status"):
        folder.finish(msgspec.structs.replace(done(summary), status="great"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.record(evaluation={"conf": math.nan})
    assert violations(json.loads((tmp_path / "run_summary.json").read_text())) == []


def test_publish_copies_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "from" / "weights").mkdir(parents=True)
    (tmp_path / "from" / "weights" / "last").write_text("w")
    (tmp_path / "from" / "args.yaml").write_text("a")
    publish(tmp_path / "from", tmp_path / "to", ["args.yaml", "weights", "results.csv"])
    assert sorted(p.name for p in (tmp_path / "to").rglob("*")) == ["args.yaml", "last", "weights"]
