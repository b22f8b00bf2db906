"""A run root's life: incomplete from its first second, finished or explained at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qatval.core.errors import QatvalError
from qatval.core.summary import load_summary, violations
from qatval.run.root import RunRoot, merged, publish


@pytest.fixture
def announced(make_summary: Any) -> dict[str, Any]:
    """A summary as it is before a run; what it measured comes back in `finish`."""
    return make_summary("ema")


def test_says_incomplete_at_once(tmp_path: Path, announced: dict[str, Any]) -> None:
    RunRoot(tmp_path / "run", announced)
    summary = load_summary(tmp_path / "run")
    assert summary["status"] == "incomplete"
    assert summary["error"]["message"] == "the run has not finished"


def test_stage_is_on_disk_when_it_begins(tmp_path: Path, announced: dict[str, Any]) -> None:
    root = RunRoot(tmp_path, announced)
    root.enter("training")
    assert load_summary(tmp_path)["error"]["stage"] == "training"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (QatvalError("no such file"), "no such file"),
        (KeyboardInterrupt(), "interrupted"),
        (ValueError(), "ValueError"),
    ],
)
def test_failure_is_recorded_with_its_stage(
    error: BaseException, message: str, tmp_path: Path, announced: dict[str, Any]
) -> None:
    root = RunRoot(tmp_path, announced)
    root.enter("training")
    root.fail(error)
    summary = load_summary(tmp_path)
    assert summary["status"] == "incomplete"
    assert summary["error"] == {
        "type": type(error).__name__,
        "message": message,
        "stage": "training",
    }
    assert message in (tmp_path / "summary.md").read_text()


def test_finish_replaces_the_incomplete_summary(tmp_path: Path, announced: dict[str, Any]) -> None:
    root = RunRoot(tmp_path, announced)
    root.enter("training")
    root.finish({"status": "completed-success", "metrics": {"extra": 1.0}})
    summary = load_summary(tmp_path)
    assert summary["status"] == "completed-success"
    assert "error" not in summary
    assert summary["metrics"]["extra"] == 1.0
    assert summary["metrics"]["final_value"] == announced["metrics"]["final_value"]
    assert set(summary["timings"]) == {"start", "training", "total"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_finished_run_is_kept(tmp_path: Path, announced: dict[str, Any]) -> None:
    RunRoot(tmp_path, announced).finish({"status": "completed-success"})
    before = (tmp_path / "run_summary.json").read_bytes()
    with pytest.raises(QatvalError, match=r"already holds a finished run .*--overwrite"):
        RunRoot(tmp_path, announced)
    assert (tmp_path / "run_summary.json").read_bytes() == before


def test_overwrite_removes_what_the_earlier_run_left(
    tmp_path: Path, announced: dict[str, Any]
) -> None:
    RunRoot(tmp_path, announced).finish({"status": "completed-success"})
    (tmp_path / "ultralytics" / "old").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("the user's own")
    RunRoot(tmp_path, announced, overwrite=True)
    assert not (tmp_path / "ultralytics").exists()
    assert not (tmp_path / "summary.md").exists()
    assert (tmp_path / "notes.txt").exists()
    assert load_summary(tmp_path)["status"] == "incomplete"


def test_an_incomplete_run_may_be_tried_again(tmp_path: Path, announced: dict[str, Any]) -> None:
    RunRoot(tmp_path, announced).fail(ValueError("x"))
    RunRoot(tmp_path, announced)


def test_an_unreadable_summary_is_not_lost(tmp_path: Path, announced: dict[str, Any]) -> None:
    (tmp_path / "run_summary.json").write_text("{")
    with pytest.raises(QatvalError, match=r"unreadable summary: .*--overwrite"):
        RunRoot(tmp_path, announced)
    assert (tmp_path / "run_summary.json").read_text() == "{"


def test_folder_that_cannot_be_made(tmp_path: Path, announced: dict[str, Any]) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(QatvalError, match=r"cannot write .*: .*; give a folder"):
        RunRoot(blocked / "run", announced)


def test_a_summary_that_breaks_the_schema_is_never_written(
    tmp_path: Path, announced: dict[str, Any]
) -> None:
    root = RunRoot(tmp_path, announced)
    with pytest.raises(ValueError, match="status"):
        root.finish({"status": "great"})
    assert violations(json.loads((tmp_path / "run_summary.json").read_text())) == []


def test_merged_lays_nested_objects_over_each_other() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 1}
    assert merged(base, {"a": {"y": 3}, "c": 4}) == {"a": {"x": 1, "y": 3}, "b": 1, "c": 4}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}


def test_publish_copies_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "from" / "weights").mkdir(parents=True)
    (tmp_path / "from" / "weights" / "last").write_text("w")
    (tmp_path / "from" / "args.yaml").write_text("a")
    publish(tmp_path / "from", tmp_path / "to", ["args.yaml", "weights", "results.csv"])
    assert sorted(p.name for p in (tmp_path / "to").rglob("*")) == ["args.yaml", "last", "weights"]
