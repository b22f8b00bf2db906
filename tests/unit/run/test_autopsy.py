"""What is looked into where a run's weights fell, what it costs, and when nothing is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from qatval.core.measurements import Autopsy, EpochRecord, Fall, TrajectoryRecord
from qatval.quant.methods import method
from qatval.run import autopsy
from qatval.run.autopsy import autopsies, has_fallen
from qatval.run.models import TrainedModels
from qatval.testing import build_summary
from qatval.train.trajectory import Trajectory, fallen_file, weights_file

STALE = 1e6  # a variance that fits nothing

seen: list[int] = []  # images that went through a model, by batch or pass


class Detector(nn.Module):
    """Worth a number where its statistics fit, and nothing where they do not."""

    def __init__(self, worth: float, variance: float = 1.0) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.model[1].running_var.fill_(variance)
        self.worth = nn.Parameter(torch.tensor(worth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return self.model(x)

    def value(self) -> float:
        fits = float(self.model[1].running_var.max()) < STALE / 2
        return self.worth.item() if fits else 0.0


@dataclass
class Split:
    images: int

    def __len__(self) -> int:
        return self.images

    def first(self, images: int) -> Split:
        return Split(min(images, self.images))


@dataclass
class Subset:
    val: Split


class Left:
    """What a training left, and how it is examined."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.images = 256
        self.losses: list[float | None] = [1.0, 1.0, 1.0, 1.0]
        self.loaded: list[Path] = []
        self._folder = folder
        self._files = {folder / "start": Detector(0.5)}
        monkeypatch.setattr(autopsy, "load_checkpoint", self._load)
        monkeypatch.setattr(autopsy, "evaluator", self._evaluator)
        seen.clear()

    def fell(self, weights: Any, epoch: int, **models: Detector) -> None:
        name: Any
        for name, model in models.items():
            file = fallen_file(self._folder, weights, epoch, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            self._files[file] = model

    def ended(self, weights: Any, **models: Detector) -> None:
        name: Any
        for name, model in models.items():
            self._files[weights_file(self._folder, weights, name)] = model

    def training(self) -> TrainedModels:
        setup: Any = SimpleNamespace(
            subset=Subset(Split(self.images)),
            arguments={},
            device=torch.device("cpu"),
            images=SimpleNamespace(pixels=self._pixels),
            start=SimpleNamespace(path=self._folder / "start"),
        )
        losses = enumerate(self.losses, start=1)
        epochs = [EpochRecord(epoch, 0.1, {"train/loss": loss}) for epoch, loss in losses]
        history: Any = {"raw": epochs, "ema": epochs}
        return TrainedModels(setup, Trajectory(history, directory=str(self._folder)))

    def _load(self, path: Path, _: object) -> Detector:
        self.loaded.append(path)
        return self._files[path]

    def _evaluator(self, subset: Subset, *_: object) -> Any:
        def evaluate(model: Detector) -> Any:
            seen.append(len(subset.val))
            return SimpleNamespace(value=model.value())

        return SimpleNamespace(evaluate=evaluate)

    @staticmethod
    def _pixels() -> Iterator[torch.Tensor]:
        images = torch.rand(1024, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        yield from images.split(16)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Left:
    return Left(monkeypatch, tmp_path)


def fall(epoch: int | None, *, lasts: bool = False, rose: bool = False, best: int = 1) -> Fall:
    return Fall(
        epoch=epoch,
        best=0.5,
        best_epoch=best,
        lowest=0.1,
        lowest_epoch=epoch,
        epochs=1,
        recovered=None if lasts else 4,
        loss_before=1.0,
        loss_rose=rose,
    )


def look(left: Left | TrainedModels, *falls: Fall, of: str = "baseline") -> tuple[Autopsy, ...]:
    summary = build_summary(of, values=(0.5, 0.1))
    found = TrajectoryRecord("evaluation diverged", falls)
    stability = replace(summary.stability, trajectory=found)
    trained = left.training() if isinstance(left, Left) else left
    return autopsies(method(of), replace(summary, stability=stability), trained)


def test_what_is_restored_is_named(left: Left) -> None:
    left.fell("raw", 2, raw=Detector(0.4, STALE), best=Detector(0.5))
    (found,) = look(left, fall(2))
    assert (found.epoch, found.good, found.broken) == (2, 0.5, 0.0)
    assert (found.cause, found.layer) == ("statistics", "model.1")
    assert found.restored == pytest.approx(0.8)


def test_what_fell_from_the_start_is_compared_with_the_start(left: Left) -> None:
    left.fell("raw", 1, raw=Detector(0.5, STALE))
    (found,) = look(left, fall(1, best=0))
    assert (found.good, found.cause) == (0.5, "statistics")


@pytest.mark.parametrize(("rose", "cause"), [(True, "training"), (False, None)])
def test_what_nothing_restores_is_the_trainings_if_its_loss_rose(
    rose: bool, cause: str | None, left: Left
) -> None:
    left.fell("raw", 2, raw=Detector(0.1), best=Detector(0.5))
    (found,) = look(left, fall(2, rose=rose))
    assert found.cause == cause
    assert found.restored is None
    assert [probe.restored for probe in found.probes] == [0.0]


def test_where_the_images_looked_at_hold_nothing_is_named(left: Left) -> None:
    """A share of next to nothing is chance: here anything would restore it many times over."""
    left.fell("raw", 2, raw=Detector(0.30), best=Detector(0.31))
    (found,) = look(left, fall(2, rose=True))
    assert (found.cause, found.probes) == (None, ())
    assert (found.good, found.broken) == (pytest.approx(0.31), pytest.approx(0.30))


@pytest.mark.parametrize(("broken", "probed"), [(0.38, False), (0.37, True), (0.26, True)])
def test_a_quarter_must_be_lost_on_the_images_looked_at(
    broken: float, probed: bool, left: Left
) -> None:
    """Less than what a fall has lost on all of them: a part of them may show less of it."""
    left.fell("raw", 2, raw=Detector(broken), best=Detector(0.5))
    (found,) = look(left, fall(2))
    assert bool(found.probes) is probed


@pytest.mark.parametrize(("loss", "cause"), [(1.3, "training"), (0.7, None), (None, "training")])
def test_the_last_epoch_is_judged_by_its_own_loss(
    loss: float | None, cause: str | None, left: Left
) -> None:
    left.losses[-1] = loss
    left.fell("raw", 2, raw=Detector(0.1), best=Detector(0.5))
    left.ended("raw", last=Detector(0.1), best=Detector(0.5))
    found = look(left, fall(2, lasts=True, rose=True))
    assert [(one.epoch, one.cause) for one in found] == [(2, "training"), (4, cause)]


def test_falls_of_which_nothing_was_kept_are_left_out(left: Left) -> None:
    left.fell("raw", 2, raw=Detector(0.4, STALE), best=Detector(0.5))
    assert [one.epoch for one in look(left, fall(2), fall(3))] == [2]


def test_methods_that_share_weights_share_the_look(left: Left) -> None:
    left.fell("ema", 2, ema=Detector(0.4, STALE), raw=Detector(0.4), best=Detector(0.5))
    left.fell("raw", 2, raw=Detector(0.1), best=Detector(0.5))
    trained = left.training()
    found = look(trained, fall(2), of="ema")
    loaded = len(left.loaded)
    assert look(trained, fall(2), fall(None, lasts=True), of="ema+qc") == found
    assert len(left.loaded) == loaded
    assert look(trained, fall(2)) != found


@pytest.mark.parametrize("images", [88, 256, 5000])
def test_no_more_images_are_seen_than_validation_has(images: int, left: Left) -> None:
    left.images = images
    left.fell("ema", 2, ema=Detector(0.1, STALE), raw=Detector(0.1), best=Detector(0.5))
    (found,) = look(left, fall(2), of="ema")
    assert [probe.repaired for probe in found.probes] == ["statistics", "average"]
    assert sum(seen) == found.images * (2 + len(found.probes) + 1)  # and once for statistics
    assert sum(seen) <= images


def test_weights_that_are_not_finite_are_the_trainings(left: Left) -> None:
    left.fell("raw", 2, raw=Detector(float("nan")), best=Detector(0.5))
    (found,) = look(left, fall(2))
    assert found == Autopsy(epoch=2, images=0, cause="training")
    assert not seen


def test_what_only_fell_after_the_training_is_no_fall_of_its_weights() -> None:
    held = build_summary("ema+qc", values=(0.5, 0.5, 0.1))
    record = TrajectoryRecord("diverged", (fall(None, lasts=True),))
    after = replace(held, stability=replace(held.stability, trajectory=record))
    assert not has_fallen(after)
    assert not has_fallen(held)
