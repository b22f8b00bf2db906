"""A run folder's life: incomplete from its first second, finished or explained at the end."""

from __future__ import annotations

import contextlib
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

from qatval.analysis.runs import collect
from qatval.core.errors import QatvalError
from qatval.core.measurements import BatchNormDrift, EpochRecord, Metrics
from qatval.core.schema import violations
from qatval.core.summary import RunError, RunSummary, load_summary
from qatval.run.claim import Claim
from qatval.run.configuration import configure
from qatval.run.folder import RunFolder, complete_replacement, publish
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


def finish(folder: RunFolder, weights: str = "w", **changes: Any) -> None:
    """Leave all that a run leaves, and finish it."""
    for file in (folder.weights("integer"), folder.log, folder.dataset / "dataset.yaml"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(weights)
    named = msgspec.structs.replace(
        folder.summary.artifacts, weights=folder.relative(folder.weights("integer"))
    )
    folder.finish(msgspec.structs.replace(done(folder.summary), artifacts=named, **changes))


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
    finish(folder)
    found = load_summary(tmp_path)
    assert found.status == "completed-success"
    assert found.error is None
    assert (found.metrics.best_value, found.metrics.final_value) == (0.6, 0.55)
    assert found.metrics.best_epoch == 0
    assert set(found.timings or ()) == {"start", "training", "total"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_finished_run_is_kept(tmp_path: Path, summary: RunSummary) -> None:
    finish(claim(tmp_path, summary))
    before = (tmp_path / "run_summary.json").read_bytes()
    with pytest.raises(QatvalError, match=r"already holds a finished run .*--overwrite"):
        claim(tmp_path, summary)
    assert (tmp_path / "run_summary.json").read_bytes() == before


def test_a_finished_run_knows_all_that_it_left(tmp_path: Path, summary: RunSummary) -> None:
    (tmp_path / "notes.txt").write_text("the user's own")
    folder = claim(tmp_path, summary)
    folder.log.write_text("of all methods")
    left = (folder.weights("integer"), folder.predictions, folder.dataset / "dataset.yaml")
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"content")
    folder.finish(done(summary))
    folder.log.write_text("of all methods, and the next one")
    found = load_summary(tmp_path)
    assert found == folder.summary
    assert found.files is not None
    assert {*found.files} == {"summary.md", *map(folder.relative, left)}
    (run,), _ = collect([tmp_path], verify=True)
    assert run.differences == ()


def replacing(root: Path, summary: RunSummary) -> RunFolder:
    """Begin a run in the place of a finished one, which has weights ``old``."""
    finish(claim(root, summary), "old")
    (root / "notes.txt").write_text("the user's own")
    folder = claim(root, msgspec.structs.replace(summary, run_id="new"), overwrite=True)
    folder.clear()
    return folder


def weights_in(root: Path) -> str:
    summary = load_summary(root)
    assert summary.artifacts.weights is not None
    return (root / summary.artifacts.weights).read_text()


def test_a_finished_run_stays_until_the_new_one_is_finished(
    tmp_path: Path, summary: RunSummary
) -> None:
    folder = replacing(tmp_path, summary)
    folder.enter("training")
    assert (load_summary(tmp_path).run_id, weights_in(tmp_path)) == (summary.run_id, "old")
    folder.fail(ValueError("x"))
    assert (load_summary(tmp_path).run_id, weights_in(tmp_path)) == (summary.run_id, "old")
    finish(folder, "new")
    assert (load_summary(tmp_path).run_id, weights_in(tmp_path)) == ("new", "new")
    assert (tmp_path / "dataset" / "dataset.yaml").read_text() == "new"
    assert (tmp_path / "ultralytics.log").read_text() == "new"
    assert (tmp_path / "notes.txt").read_text() == "the user's own"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_abandoned_replacement_leaves_no_trace(tmp_path: Path, summary: RunSummary) -> None:
    folder = replacing(tmp_path, summary)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    before = {path: time for path, time in before.items() if ".replacement" not in path.parts}
    folder.fail(ValueError("x"))
    folder.abandon()
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


class Killed(BaseException):
    """What stands for SIGKILL: nothing runs after it."""


@pytest.mark.parametrize("moment", range(18))
def test_a_kill_while_a_run_takes_the_place_of_another(
    moment: int, tmp_path: Path, summary: RunSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each change on the disk: what is there is one of the two runs, whole, or incomplete."""
    folder = replacing(tmp_path, summary)
    changes = 0

    def counted(change: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal changes
            if changes == moment:
                raise Killed
            changes += 1
            return change(*args, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", counted(Path.replace))
        patched.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with contextlib.suppress(Killed):
            finish(folder, "new")
    left = load_summary(tmp_path)
    if left.status != "incomplete":
        whole = "old" if left.run_id == summary.run_id else "new"
        assert weights_in(tmp_path) == whole
        assert (tmp_path / "dataset" / "dataset.yaml").read_text() == whole
    complete_replacement(tmp_path)
    ended = load_summary(tmp_path).run_id
    assert load_summary(tmp_path).status == "completed-success"
    assert weights_in(tmp_path) == ("new" if ended == "new" else "old")
    assert ended == "new" or moment <= 2  # its own summary is what makes it whole
    assert changes == moment or moment > 12


def test_a_named_file_that_is_gone_is_no_success(tmp_path: Path, summary: RunSummary) -> None:
    folder = claim(tmp_path, summary)
    named = msgspec.structs.replace(summary.artifacts, weights="ultralytics/integer.safetensors")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "dataset.yaml").touch()
    with pytest.raises(QatvalError, match=r"integer.safetensors was removed while the run went on"):
        folder.finish(msgspec.structs.replace(done(summary), artifacts=named))
    assert load_summary(tmp_path).status == "incomplete"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_root_that_vanishes_is_not_made_anew(
    replaced: bool, tmp_path: Path, summary: RunSummary
) -> None:
    root = tmp_path / "run"
    with Claim() as owned:
        owned.add(root)
        folder = claim(root, summary, claim=owned)
        root.rename(tmp_path / "elsewhere")
        if replaced:
            root.mkdir()
        for step in (partial(folder.enter, "training"), partial(folder.finish, done(summary))):
            with pytest.raises(QatvalError, match="was removed, moved or replaced during the run"):
                step()
        folder.fail(ValueError("x"))
    assert list(root.iterdir()) == [] if replaced else not root.exists()


def test_time_before_an_interruption_counts(tmp_path: Path, summary: RunSummary) -> None:
    folder = claim(tmp_path, summary)
    folder.timings["training"] = 100.0
    folder.enter("delivery")
    again = claim(tmp_path, load_summary(tmp_path))
    again.enter("training")
    finish(again)
    timings = load_summary(tmp_path).timings or {}
    assert timings["training"] >= 100.0
    assert timings["total"] >= 100.0


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
        finish(folder, status="great")
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
        finish(folder)
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
