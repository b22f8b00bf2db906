"""A run's life around the work itself, which a stand-in does here: seconds less, same folders."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from qatval.core.errors import QatvalError
from qatval.core.progress import Progress
from qatval.core.summary import RunSummary, load_summary
from qatval.run import runner
from qatval.run.claim import Claim
from qatval.run.configuration import RunConfig, configure
from qatval.run.folder import RunFolder
from qatval.run.record import finished
from qatval.run.workspace import Workspace

QUIET = Progress("", quiet=True)
METHODS = ("baseline", "ema")


class Pipeline:
    """Finishes methods in order, each with the number of its process as weights.

    Attributes:
        dies: What it raises, by the moment: ``"setup"``, ``"training"`` or before a method's name.
        ran: What it was asked for, process by process.
    """

    def __init__(self) -> None:
        self.dies: dict[str, Callable[[], BaseException]] = {}
        self.ran: list[list[str]] = []
        self.identities: list[str] = []

    def __call__(
        self,
        config: RunConfig,
        folders: Mapping[str, RunFolder],
        workspace: Workspace,
        progress: Progress,
    ) -> None:
        self.ran.append(list(folders))
        self._at("setup", folders)
        workspace.hold({"dataset": {"identity": "shapes"}})
        directory = workspace.training(0)
        self.identities.append(directory.name)
        directory.mkdir(exist_ok=True)
        self._at("start", folders)
        (directory / "trajectory.json").write_text('{"steps": 34}')
        self._at("training", folders)
        for name, folder in folders.items():
            self._at(name, {name: folder})
            for file in (folder.weights("integer"), folder.dataset / "dataset.yaml"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(str(len(self.ran)))
            artifacts = replace(
                folder.summary.artifacts, weights=folder.relative(folder.weights("integer"))
            )
            folder.finish(finished(replace(folder.summary, artifacts=artifacts), [0.5, 0.5], []))

    def _at(self, stage: str, folders: Mapping[str, RunFolder]) -> None:
        for folder in folders.values():
            folder.enter(stage)
        if stage in self.dies:
            raise self.dies.pop(stage)()


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    stand_in = Pipeline()
    monkeypatch.setattr(runner, "_pipeline", lambda: stand_in)
    monkeypatch.setattr("qatval.run.runner._steps", lambda *_: 34)  # without torch
    return stand_in


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunConfig]:
    (tmp_path / "coco").mkdir()
    (tmp_path / "m.safetensors").write_text("weights")

    def config(*methods: str, **options: Any) -> RunConfig:
        return configure(
            **{
                "variant": "yolo10n",
                "methods": methods or METHODS,
                "profile": "smoke",
                "run_root": tmp_path / "run",
                "coco_root": tmp_path / "coco",
                "checkpoint": tmp_path / "m.safetensors",
                **options,
            }
        )

    return config


class Killed(BaseException):
    """What stands for SIGKILL: nothing runs after it."""


def killed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the pipeline raises, and leave what there is then."""
    with monkeypatch.context() as patched:
        patched.setattr(runner, "_failed", lambda error, *_: error)
        with pytest.raises(Killed):
            runner.run(config, QUIET)


def weights(root: Path) -> str:
    summary = load_summary(root)
    assert summary.artifacts.weights is not None
    return (root / summary.artifacts.weights).read_text()


def snapshot(root: Path) -> dict[Path, tuple[int, bytes]]:
    """Everything in a run root, to the byte and the nanosecond."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


Make = Callable[..., RunConfig]


def test_a_run_leaves_nothing_hidden(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    summaries = runner.run(make(), QUIET)
    assert [summary.status for summary in summaries] == ["completed-success"] * 2
    assert list(tmp_path.rglob(".*")) == []
    assert summaries[0].resumed == ()


@pytest.mark.parametrize("how", ["killed", "interrupted"])
@pytest.mark.parametrize("stage", ["training", "baseline", "ema"])
def test_an_interrupted_run_goes_on(
    stage: str,
    how: str,
    pipeline: Pipeline,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "run"
    pipeline.dies[stage] = Killed if how == "killed" else KeyboardInterrupt
    if how == "killed":
        killed(make(), monkeypatch)
    else:
        with pytest.raises(KeyboardInterrupt, match=r"after 34 steps .*: the same command goes on"):
            runner.run(make(), QUIET)
    done = ["baseline"] if stage == "ema" else []
    before = load_summary(root / "ema")
    kept = {name: snapshot(root / name) for name in done}
    summaries = runner.run(make(), QUIET)
    assert pipeline.ran == [list(METHODS), [name for name in METHODS if name not in done]]
    assert pipeline.identities[0] == pipeline.identities[1]
    assert {name: snapshot(root / name) for name in done} == kept
    assert [summary.status for summary in summaries] == ["completed-success"] * 2
    after = summaries[1]
    assert (after.run_id, after.created_at) == (before.run_id, before.created_at)
    (resumed,) = after.resumed
    assert (resumed.stage, resumed.steps) == ("training" if stage == "baseline" else stage, 34)
    assert len(summaries[0].resumed) == (0 if done else 1)
    assert list(tmp_path.rglob(".*")) == []


def test_killed_before_anything_was_trained(
    pipeline: Pipeline, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.dies["start"] = Killed
    killed(make(seed=0), monkeypatch)
    (first, _) = runner.run(make(seed=1), QUIET)  # it holds nobody to its configuration
    assert first.training.seed == 1
    assert first.resumed == ()


def test_killed_after_the_last_method(
    pipeline: Pipeline, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "remove", lambda self: None)
        done = runner.run(make(), QUIET)
    before = snapshot(tmp_path / "run" / "ema")
    assert runner.run(make(), QUIET) == done
    assert snapshot(tmp_path / "run" / "ema") == before
    assert len(pipeline.ran) == 1
    assert not (tmp_path / "run" / ".training").exists()


def test_what_cannot_be_exported_is_finished_without(
    pipeline: Pipeline, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "require_installed", lambda: None)
    pipeline.dies["ema"] = lambda: QatvalError("no export")
    with pytest.raises(QatvalError, match="no export"):
        runner.run(make(export=True), QUIET)
    (_, ema) = runner.run(make(), QUIET)
    assert pipeline.identities[0] == pipeline.identities[1]
    assert (ema.status, len(ema.resumed)) == ("completed-success", 1)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 7}, "another seed: it was 0, is 7;"),
        ({"epochs": 9}, r"another profile\.epochs: it was 1, is 9;"),
        ({"methods": ("ema", "baseline")}, "another method:"),
        ({"precision": {"weight_bit_width": 3}}, r"another quantization\.weight_bit_width"),
        ({"fused": False}, "another fused"),
        ({"amp": False}, "another amp"),
        ({"workers": 1}, "another workers"),
        ({"checkpoint": "other.safetensors"}, "another checkpoint"),
        ({"image_list": "list.txt"}, "another image list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_configuration_is_refused(
    changed: dict[str, Any], says: str, pipeline: Pipeline, make: Make, tmp_path: Path
) -> None:
    pipeline.dies["training"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(make(), QUIET)
    for name in ("other.safetensors", "list.txt"):
        (tmp_path / name).write_text("another")
    files = {"checkpoint", "image_list"} & changed.keys()
    options = changed | {name: tmp_path / changed[name] for name in files}
    before = snapshot(tmp_path / "run")
    with pytest.raises(QatvalError, match=says):
        runner.run(make(**options), QUIET)
    assert snapshot(tmp_path / "run") == before
    runner.run(make(**options, restart=True), QUIET)


def test_files_may_move(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    pipeline.dies["training"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(make(), QUIET)
    (tmp_path / "m.safetensors").rename(tmp_path / "moved.safetensors")
    runner.run(make(checkpoint=tmp_path / "moved.safetensors"), QUIET)


def test_restart_begins_anew(pipeline: Pipeline, make: Make) -> None:
    pipeline.dies["training"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(make(), QUIET)
    (first, _) = runner.run(make(restart=True), QUIET)
    assert first.resumed == ()
    assert pipeline.identities[0] != pipeline.identities[1]
    with pytest.raises(QatvalError, match=r"holds a finished run .*--overwrite"):
        runner.run(make(restart=True), QUIET)


def test_restart_keeps_what_is_finished(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    pipeline.dies["ema"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(make(), QUIET)
    before = snapshot(tmp_path / "run")
    with pytest.raises(QatvalError, match=r"baseline already holds a finished run .*--overwrite"):
        runner.run(make(restart=True), QUIET)
    assert snapshot(tmp_path / "run") == before
    runner.run(make(restart=True, overwrite=True), QUIET)
    assert pipeline.ran[-1] == list(METHODS)
    assert weights(tmp_path / "run" / "baseline") == "2"


def test_another_finished_run_is_not_taken_for_the_own(
    pipeline: Pipeline, make: Make, tmp_path: Path
) -> None:
    pipeline.dies["ema"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(make(), QUIET)
    runner.run(make("baseline", run_root=tmp_path / "run" / "baseline", overwrite=True), QUIET)
    with pytest.raises(QatvalError, match="baseline already holds a finished run"):
        runner.run(make(), QUIET)


def test_refused_methods_delete_nothing(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    runner.run(make("baseline", run_root=tmp_path / "run" / "baseline"), QUIET)
    pipeline.dies["ema"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(make("ema", run_root=tmp_path / "run" / "ema"), QUIET)
    before = snapshot(tmp_path / "run")
    with pytest.raises(QatvalError, match="baseline already holds a finished run"):
        runner.run(make("ema", "baseline"), QUIET)
    assert snapshot(tmp_path / "run") == before


def test_overwrite_that_fails_keeps_what_there_is(
    pipeline: Pipeline, make: Make, tmp_path: Path
) -> None:
    runner.run(make(), QUIET)
    before = snapshot(tmp_path / "run")
    missing = make(overwrite=True, checkpoint=tmp_path / "mistyped.safetensors")
    with pytest.raises(QatvalError, match=r"mistyped\.safetensors not found"):
        runner.run(missing, QUIET)
    assert snapshot(tmp_path / "run") == before
    pipeline.dies["setup"] = lambda: ValueError("a defect")
    with pytest.raises(ValueError, match="a defect"):
        runner.run(make(overwrite=True), QUIET)
    assert snapshot(tmp_path / "run") == before
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_an_interrupted_replacement_goes_on(
    how: str, pipeline: Pipeline, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    runner.run(make(), QUIET)
    again = make(overwrite=True)
    pipeline.dies["ema"] = Killed if how == "killed" else KeyboardInterrupt
    if how == "killed":
        killed(again, monkeypatch)
    else:
        with pytest.raises(KeyboardInterrupt):
            runner.run(again, QUIET)
    assert [weights(root / name) for name in METHODS] == ["2", "1"]
    with pytest.raises(QatvalError, match="ema already holds a finished run"):
        runner.run(make(), QUIET)
    summaries = runner.run(again, QUIET)
    assert [weights(root / name) for name in METHODS] == ["2", "3"]
    assert pipeline.ran[-1] == ["ema"]
    assert summaries[0].resumed == ()
    assert [resumed.stage for resumed in summaries[1].resumed] == ["ema"]
    assert list(tmp_path.rglob(".*")) == []


def test_two_runs_on_one_root(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    """Whether they share all of their folders, or one that is nested."""

    def second(config: RunConfig) -> BaseException:
        with pytest.raises(QatvalError, match=r"is in use by process \d+") as refused:
            runner.run(config, QUIET)
        return ValueError(str(refused.value))

    for config in (make(), make("ema", run_root=tmp_path / "run" / "ema"), make("qc", "bn")):
        pipeline.dies["training"] = lambda config=config: second(config)
        with pytest.raises(ValueError, match="in use"):
            runner.run(make(restart=True), QUIET)
    assert len(pipeline.ran) == 3
    runner.run(make("bn", run_root=tmp_path / "run" / "bn"), QUIET)


def test_a_root_that_vanishes_is_an_error(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    def vanish() -> BaseException:
        shutil.rmtree(tmp_path / "run")
        return FileNotFoundError("a library's")

    pipeline.dies["training"] = vanish
    with pytest.raises(QatvalError, match="was removed, moved or replaced during the run"):
        runner.run(make(), QUIET)
    assert not (tmp_path / "run").exists()


def test_leavings_of_dead_runs_are_removed(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    (tmp_path / "run" / ".training-abc").mkdir(parents=True)
    (tmp_path / "run" / "ema").mkdir()
    (tmp_path / "run" / "ema" / ".run_summary.json.00ff.partial").touch()
    (tmp_path / "run" / "ema" / "notes.txt").touch()
    runner.run(make(), QUIET)
    assert list(tmp_path.rglob(".*")) == []
    assert (tmp_path / "run" / "ema" / "notes.txt").exists()


def test_a_checkpoint_that_vanished_leaves_an_interrupted_run_as_it_is(
    pipeline: Pipeline, make: Make, tmp_path: Path
) -> None:
    pipeline.dies["training"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(make(), QUIET)
    before = snapshot(tmp_path / "run")
    (tmp_path / "m.safetensors").rename(tmp_path / "away")
    with pytest.raises(QatvalError, match="not found"):
        runner.run(make(), QUIET)
    assert snapshot(tmp_path / "run") == before


def test_resumed_runs_are_comparable_with_others(pipeline: Pipeline, make: Make) -> None:
    import msgspec

    from qatval.analysis.conditions import conditions

    def recorded(summary: RunSummary) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(summary)
        return plain

    whole = runner.run(make(), QUIET)
    pipeline.dies["training"] = KeyboardInterrupt
    again = dataclasses.replace(make(), overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        runner.run(again, QUIET)
    resumed = runner.run(again, QUIET)
    assert resumed[0].resumed
    for one, other in zip(whole, resumed, strict=True):
        assert conditions(recorded(one)) == conditions(recorded(other))


def test_the_claim_covers_every_folder(pipeline: Pipeline, make: Make, tmp_path: Path) -> None:
    held: list[Path] = []

    def look() -> BaseException:
        for name in (".", *METHODS):
            with pytest.raises(QatvalError, match="in use"):
                Claim().add(tmp_path / "run" / name)
            held.append(tmp_path / "run" / name)
        return ValueError("seen")

    pipeline.dies["setup"] = look
    with pytest.raises(ValueError, match="seen"):
        runner.run(make(), QUIET)
    assert len(held) == 3
