"""A training that was interrupted anywhere and went on is the training that was not, to the bit.

Each case is trained once without an end, and once in as many pieces as it has interruptions.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qatval.core import interruption, presets
from qatval.core.errors import QatvalError
from qatval.quant.methods import method

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

EPOCHS, BATCHES = 3, 5
KILLS = 12


@dataclass(frozen=True)
class Case:
    """A training: what a method asks for, with other arguments of Ultralytics."""

    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.method


# Steps of three batches, so that gradients are accumulated over the ends of epochs; the warm-up
# ends in the second epoch, mosaic before the last.
ACCUMULATED = Case(
    "ema", {"nbs": 12, "mosaic": 1.0, "mixup": 0.3, "close_mosaic": 1, "warmup_epochs": 1.5}
)
CASES = [
    Case("dampen+freeze", {"mosaic": 0.5}),
    Case("fp32", {"optimizer": "SGD", "lr0": 1e-3}),
    Case("distill", plan={"batchnorm": "anchored", "fused": False}),
]


class Killed(BaseException):
    """The process would be gone."""


@dataclass(frozen=True)
class Point:
    """Where a training ends: at an event of Ultralytics, in an epoch, at a batch (from 0)."""

    event: str
    epoch: int
    batch: int | None = None
    by: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)

    def __call__(self, trainer: Any) -> None:
        done = trainer.done - (self.event == "on_train_batch_end")
        if trainer.epoch == self.epoch and self.batch in (None, done):
            self.by()


def killed() -> None:
    raise Killed


def after(epoch: int, batch: int) -> Point:
    return Point("on_train_batch_end", epoch, batch)


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qatval.data.shapes import draw_dataset
    from qatval.data.subset import build_subset

    root = tmp_path_factory.mktemp("data")
    draw_dataset(root / "shapes", train_images=20, val_images=6, size=64)
    built = build_subset(
        root / "shapes", train_images=None, val_images=None, seed=0, cache_dir=root / "cache"
    )
    return built.directory


@pytest.fixture(autouse=True)
def listening(heeded_signals: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals are listened to, as in a command; other tests' process does not."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}
    monkeypatch.setattr(interruption, "_received", None)
    interruption.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(case: Case, subset: Path, directory: Path, *points: Point) -> Any:
    """Train a case in a directory; return its trajectory."""
    from qatval.train.trainer import train
    from qatval.train.trajectory import TrainingPlan

    asked = method(case.method).training
    assert asked is not None
    variant = presets.variant("yolo10n")
    checkpoint = str(variant.checkpoint_for("shapes").resolve())
    averaging = method("ema").averaging
    assert averaging is not None
    plan = TrainingPlan(
        subset=str(subset),
        architecture=variant.architecture,
        checkpoint=checkpoint,
        quantization=presets.quantization("w4a16") if asked.quantized else None,
        averaging=averaging,
        scored=("raw", "ema"),
        threads=1,
        stabilizers=asked.stabilizers,
        track=asked.quantized,
        teacher=asked.teacher,
        reference=checkpoint,
    )
    smoke = presets.profile("shapes", "smoke").overrides
    size = {"epochs": EPOCHS, "batch": 4, "imgsz": 64, "nbs": 4, "warmup_epochs": 1.0}
    process = {"seed": 0, "device": "cpu", "workers": 0, "amp": False}
    arguments = {**smoke, **size, **process, **case.arguments}
    callbacks: dict[str, Any] = {}
    for point in points:
        assert point.event not in callbacks
        callbacks[point.event] = point
    return train(directory, dataclasses.replace(plan, **case.plan), arguments, callbacks)


def train_in_pieces(case: Case, subset: Path, directory: Path, points: Sequence[Point]) -> Any:
    """Train, end at each of the points in turn, and go on; each end is one that was asked for."""
    for point in points:
        with pytest.raises((interruption.Interrupted, Killed)):
            train(case, subset, directory, point)
        interruption._received = None
    return train(case, subset, directory)


def outcome(trajectory: Any) -> dict[str, Any]:
    """Return everything that a training leaves, but for times and memory."""
    folder = Path(trajectory.directory)
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".csv":
            rows = csv.DictReader(path.read_text().splitlines())
            found[name] = [{k: v for k, v in row.items() if k != "time"} for row in rows]
        elif path.name.startswith("."):
            found[name] = "should not be here"
    history = {
        which: [(record.epoch, record.value, record.metrics) for record in records]
        for which, records in trajectory.history.items()
    }
    unlike = {"history": history, "peak_memory_mb": None, "directory": ""}
    return found | dataclasses.asdict(dataclasses.replace(trajectory, **unlike))


def logged(trajectory: Any) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of the raw weights."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(trajectory.directory) / "raw" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    differing = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert differing == set()


@pytest.fixture(scope="module")
def whole(subset: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(ACCUMULATED, subset, tmp_path_factory.mktemp("whole") / "work")


def test_the_loop_is_that_of_ultralytics(
    whole: Any, subset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.engine.trainer import BaseTrainer

    from qatval.train.trainer import QatTrainer

    def leave(self: Any) -> None:
        self.finish(complete=True)

    def never(self: Any, epoch: int) -> bool:
        return False

    monkeypatch.setattr(QatTrainer, "_do_train", BaseTrainer._do_train)
    monkeypatch.setattr(QatTrainer, "final_eval", leave)
    monkeypatch.setattr(QatTrainer, "_handle_nan_recovery", never)
    theirs = train(ACCUMULATED, subset, tmp_path / "work")
    assert_same(outcome(theirs), outcome(whole))


def test_it_goes_on_wherever_a_signal_has_ended_it(
    whole: Any, subset: Path, tmp_path: Path
) -> None:
    """Within the warm-up, accumulated gradients, at ends of epochs, before and in the last one."""
    work = tmp_path / "work"
    points = [after(0, 0), after(0, 3), after(1, 0), after(1, 4), after(2, 0), after(2, 4)]
    pieces = train_in_pieces(ACCUMULATED, subset, work, points)
    assert pieces.steps == EPOCHS * BATCHES // 3 + 2  # the first batches warm accumulation up
    assert_same(outcome(pieces), outcome(whole))
    assert logged(pieces) == logged(whole)
    assert not (work / "state.safetensors").exists()


@pytest.mark.parametrize(
    "point",
    [
        Point("on_train_batch_start", 0, 2, killed),
        Point("on_train_batch_start", 1, 3, killed),
        Point("on_model_save", 1, None, killed),
        Point("on_fit_epoch_end", 2, None, killed),
    ],
    ids=lambda point: f"{point.event}-{point.epoch}",
)
def test_what_came_after_the_state_is_forgotten(
    point: Point, whole: Any, subset: Path, tmp_path: Path
) -> None:
    pieces = train_in_pieces(ACCUMULATED, subset, tmp_path / "work", [point])
    assert_same(outcome(pieces), outcome(whole))
    assert logged(pieces) == logged(whole)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_that_takes_part_goes_on(case: Case, subset: Path, tmp_path: Path) -> None:
    uninterrupted = outcome(train(case, subset, tmp_path / "whole"))
    points = [after(1, 1), after(1, 4)]
    assert_same(outcome(train_in_pieces(case, subset, tmp_path / "pieces", points)), uninterrupted)


def test_a_validation_that_was_interrupted_is_done_again(
    whole: Any, subset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qatval.train.evaluation import _Score
    from qatval.train.state import steps_done
    from qatval.train.trainer import QatTrainer

    work, trained, interrupting = tmp_path / "work", 0, True
    add, batch = _Score.add, QatTrainer._train_batch

    def interrupted(self: Any, images: Any) -> Any:
        if interrupting and trained == 2 * BATCHES:
            os.kill(os.getpid(), signal.SIGINT)
        return add(self, images)

    def counted(self: Any, images: Any) -> None:
        nonlocal trained
        trained += 1
        batch(self, images)

    monkeypatch.setattr(QatTrainer, "_train_batch", counted)
    monkeypatch.setattr(_Score, "add", interrupted)
    with pytest.raises(interruption.Interrupted):
        train(ACCUMULATED, subset, work)
    assert trained == 2 * BATCHES
    interruption._received, interrupting = None, False
    assert steps_done(work) is not None
    assert_same(outcome(train(ACCUMULATED, subset, work)), outcome(whole))
    assert trained == EPOCHS * BATCHES


def test_what_is_complete_is_not_trained_again(
    whole: Any, subset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qatval.train import trainer

    monkeypatch.setattr(trainer, "QatTrainer", None)
    again = train(ACCUMULATED, subset, Path(whole.directory).parent)
    assert again == whole


def test_a_divergence_is_complete(
    subset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qatval.train import trainer

    case = Case("fp32", {"box": 1e39})
    stopped = train(case, subset, tmp_path / "work")
    assert stopped.stopped is not None
    assert stopped.complete
    monkeypatch.setattr(trainer, "QatTrainer", None)
    assert train(case, subset, tmp_path / "work").stopped == stopped.stopped


def test_another_training_is_refused(whole: Any, subset: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(interruption.Interrupted):
        train(ACCUMULATED, subset, work, after(0, 1))
    interruption._received = None
    other = dataclasses.replace(ACCUMULATED, arguments={**ACCUMULATED.arguments, "mixup": 0.2})
    with pytest.raises(QatvalError, match=r"with mixup 0\.3, now it is 0\.2.*--restart"):
        train(other, subset, work)
    other = dataclasses.replace(ACCUMULATED, plan={"scored": ("raw",)})
    with pytest.raises(QatvalError, match="with scored"):
        train(other, subset, Path(whole.directory).parent)
    # Where data and checkpoint lie makes no difference.
    moved = shutil.copytree(subset, tmp_path / "moved" / subset.name)
    assert_same(outcome(train(ACCUMULATED, moved, work)), outcome(whole))


def test_twelve_epochs_killed_after_each_give_one_result(tmp_path: Path) -> None:
    """By SIGKILL, which leaves a process no moment to put anything in order."""
    program = Path(__file__).with_name("resume_process.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    ).stdout
    killed = [line.split() for line in output.splitlines()]
    assert [int(epoch) for epoch, _ in killed] == list(range(1, KILLS + 1))
    assert len({digest for _, digest in killed}) == 1
    whole = (tmp_path / "whole.digest").read_text()
    assert {digest for _, digest in killed} == {whole}


def test_processes_that_train_together_end_together_and_go_on(
    subset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal to one of two; what they share is right, what each draws for itself is not kept."""
    from qatval.train import trainer
    from qatval.train.state import steps_done

    work, signalled = tmp_path / "work", 1
    program = Path(__file__).with_name("rank_process.py")

    class Launching:
        ddp = True

        def __init__(self, overrides: dict[str, Any]) -> None:
            self.overrides = tmp_path / "overrides.json"
            self.overrides.write_text(json.dumps(overrides))

        def train(self) -> None:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            command = [sys.executable, *launcher, str(program), str(self.overrides)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run([*command, str(signalled)], capture_output=True, env=environment)
            if ended.returncode:
                raise Killed

    monkeypatch.setattr(trainer, "QatTrainer", Launching)
    case = Case("freeze", {"epochs": 2, "mosaic": 0.5})
    with pytest.raises(Killed):
        train(case, subset, work)
    assert steps_done(work) == BATCHES + signalled + 1
    signalled = -1
    trajectory = train(case, subset, work)
    assert trajectory.complete
    assert trajectory.steps == trajectory.oscillation.steps == 2 * BATCHES
    assert [record.epoch for record in trajectory.history["raw"]] == [1, 2]
    assert steps_done(work) is None
