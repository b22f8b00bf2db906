"""A run folder's life: incomplete from its first second, finished or explained at the end."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qatval.core.errors import QatvalError
from qatval.core.measurements import BatchNormDrift, EpochRecord, Metrics
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


@pytest.mark.parametrize(
    ("chosen", "declared"), [({}, ("ema+qc", "baseline")), ({"primary": ("ema", "qc")}, None)]
)
def test_the_primary_contrast_is_on_disk_before_the_run(
    tmp_path: Path, chosen: dict[str, Any], declared: tuple[str, str] | None
) -> None:
    config = configure(
        variant="yolo10n",
        methods=["ema"],
        profile="smoke",
        run_root=tmp_path,
        coco_root=tmp_path / "coco",
        **chosen,
    )
    claim(tmp_path / "run", announced(config, config.methods[0]))
    found = load_summary(tmp_path / "run").primary
    assert found is not None
    assert (found.method, found.reference) == (declared or chosen["primary"])


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


@pytest.mark.parametrize(
    "measured",
    [
        {"batchnorm": BatchNormDrift(8, math.nan, math.inf, "model.0.bn", ())},
        {"metrics": Metrics("metrics/mAP50-95(B)", 0.5, 0.5, map50=math.nan)},
        {"history": (EpochRecord(1, 0.5, {"train/box_loss": math.inf}),)},
        {"environment": {"of a later version": [1.0, {"nested": -math.inf}]}},
    ],
    ids=lambda measured: next(iter(measured)),
)
def test_a_value_that_json_does_not_have_is_the_reason_that_is_left(
    measured: dict[str, Any], tmp_path: Path, summary: RunSummary
) -> None:
    for end in ("finish", "record"):
        folder = claim(tmp_path / end, summary)
        folder.enter("delivery")
        whole = msgspec.structs.replace(done(summary), **measured)
        finish, record = partial(folder.finish, whole), partial(folder.record, **measured)
        with pytest.raises(QatvalError, match=next(iter(measured))) as raised:
            (finish if end == "finish" else record)()
        folder.fail(raised.value)
        found = load_summary(folder.path)
        assert found.status == "incomplete"
        assert found.error is not None
        assert found.error.message == str(raised.value)
        assert found.error.stage == "delivery"
        assert str(raised.value)[:20] in (folder.path / "summary.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gr\udcfcn", "gr\ufffdn"),  # Latin-1 on disk
        ("gr\udcc3\udcbcn", "grün"),  # UTF-8 on disk, an ASCII locale
        ("\udcff\udcfe", "\ufffd\ufffd"),
        ("grün\n\0", "grün\n\0"),
    ],
)
def test_a_reason_with_any_file_name_in_it_is_left(
    name: str, told: str, tmp_path: Path, summary: RunSummary
) -> None:
    folder = claim(tmp_path, summary)
    folder.fail(QatvalError(f"{name}.jpg: no such file"))
    found = load_summary(tmp_path).error
    assert found is not None
    assert found.message == f"{told}.jpg: no such file"


def refuse_new_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no new file be written, as on a full disk; what there is may be overwritten."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_disk_that_is_full_while_failing(
    tmp_path: Path, summary: RunSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claim(tmp_path, summary)
    folder.enter("training")
    (tmp_path / "summary.md").write_text("of a run that all but finished")
    refuse_new_files(monkeypatch)
    with pytest.raises(QatvalError, match="No space left"):
        folder.finish(done(summary))
    folder.fail(QatvalError("no room on a disk"))
    found = load_summary(tmp_path)
    assert found.status == "incomplete"
    assert found.error is not None
    assert found.error.message == "no room on a disk"
    assert not (tmp_path / "summary.md").exists()


def test_a_reason_that_does_not_fit_spoils_nothing(
    tmp_path: Path, summary: RunSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claim(tmp_path, summary)
    refuse_new_files(monkeypatch)
    folder.fail(QatvalError("x" * 100_000))
    assert load_summary(tmp_path).status == "incomplete"


@pytest.mark.parametrize("vanished", [False, True])
def test_nothing_takes_the_place_of_the_reason(
    vanished: bool, tmp_path: Path, summary: RunSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claim(tmp_path / "run", summary)
    if vanished:
        shutil.rmtree(folder.path)
        (tmp_path / "run").touch()
    else:  # the reason is in the JSON, whatever becomes of the page
        monkeypatch.setattr("qatval.run.folder.render_run", lambda _: 1 / 0)
    folder.fail(QatvalError("the reason"))
    assert folder.summary.error is not None
    assert folder.summary.error.message == "the reason"
    if not vanished:
        found = load_summary(folder.path).error
        assert found is not None
        assert found.message == "the reason"


def test_publish_copies_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "from" / "weights").mkdir(parents=True)
    (tmp_path / "from" / "weights" / "last").write_text("w")
    (tmp_path / "from" / "args.yaml").write_text("a")
    publish(tmp_path / "from", tmp_path / "to", ["args.yaml", "weights", "results.csv"])
    assert sorted(p.name for p in (tmp_path / "to").rglob("*")) == ["args.yaml", "last", "weights"]
