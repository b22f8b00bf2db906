"""What lies in a work directory: whether there is something to go on with, and with what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from qatval.core.errors import QatvalError
from qatval.core.presets import quantization
from qatval.data.shapes import draw_dataset
from qatval.data.subset import build_subset
from qatval.quant.methods import method
from qatval.train import state
from qatval.train.conditions import record_conditions, refuse_other
from qatval.train.recording import EpochLog
from qatval.train.trajectory import (
    TrainingPlan,
    Trajectory,
    finished,
    write,
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    root = tmp_path_factory.mktemp("data")
    draw_dataset(root / "shapes", train_images=2, val_images=2, size=64)
    subset = build_subset(
        root / "shapes", train_images=None, val_images=None, seed=0, cache_dir=root / "cache"
    )
    (root / "model.pt").write_bytes(b"weights")
    averaging = method("ema").averaging
    assert averaging is not None
    return TrainingPlan(
        subset=str(subset.directory),
        architecture="yolov10n.yaml",
        checkpoint=str(root / "model.pt"),
        quantization=quantization("w4a16"),
        averaging=averaging,
        scored=("raw", "ema"),
        threads=1,
        reference=str(root / "model.pt"),
    )


ARGUMENTS = {"epochs": 3, "lr0": 0.1, "device": "cpu", "classes": (1, 2)}


def test_nothing_is_no_training(tmp_path: Path) -> None:
    assert state.steps_done(tmp_path) is None
    assert state.steps_done(tmp_path / "nowhere") is None
    assert finished(tmp_path) is None
    state.remove(tmp_path)


def test_only_a_complete_training_is_finished(tmp_path: Path) -> None:
    write(tmp_path, Trajectory(steps=3))
    assert finished(tmp_path) is None
    write(tmp_path, Trajectory(steps=3, complete=True))
    assert finished(tmp_path) == Trajectory(steps=3, complete=True)
    (tmp_path / "trajectory.json").write_text('{"steps": "three"}')
    with pytest.raises(QatvalError, match=r"cannot be read.*--restart"):
        finished(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "no metadata", "other metadata", "text"])
def test_a_damaged_state_is_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / state.NAME
    whole = safetensors.torch.save({"model/x": torch.zeros(9)}, {"position": '{"epoch": 1}'})
    content = {
        "empty": b"",
        "cut": whole[:-4],
        "no metadata": safetensors.torch.save({"model/x": torch.zeros(9)}),
        "other metadata": whole,
        "text": b"a text that is long enough for a header",
    }
    path.write_bytes(content[damage])
    with pytest.raises(QatvalError, match=r"is damaged.*--restart") as caught:
        state.steps_done(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_start_that_scores_otherwise_in_the_last_digit_is_the_same(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    begun = dataclasses.replace(plan, start_value=0.5, fp32_value=0.6)
    record_conditions(tmp_path, begun, ARGUMENTS)
    refuse_other(tmp_path, dataclasses.replace(begun, start_value=0.5000001), ARGUMENTS)
    refuse_other(tmp_path, dataclasses.replace(begun, fp32_value=0.6000001), ARGUMENTS)


def test_the_same_training_goes_on_from_other_places(plan: TrainingPlan, tmp_path: Path) -> None:
    record_conditions(tmp_path, plan, ARGUMENTS)
    refuse_other(tmp_path, plan, ARGUMENTS)
    assert plan.reference is not None
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(plan.reference).read_bytes())
    # What the start was made of from the reference need not even be the same bytes.
    started = tmp_path / "start.safetensors"
    refuse_other(
        tmp_path,
        dataclasses.replace(plan, reference=str(copy), checkpoint=str(started)),
        ARGUMENTS,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 2}, "threads 1, now it is 2"),
        ({"scored": ("raw",)}, r"scored \['raw', 'ema'\], now it is \['raw'\]"),
        (
            {"quantization": dataclasses.replace(quantization("w4a16"), weight_bit_width=3)},
            r"quantization\.weight_bit_width 4, now it is 3",
        ),
        ({"quantization": None}, "with quantization"),
        ({"reference": "other.pt"}, "with reference"),
    ],
)
def test_another_plan_is_refused_by_the_field(
    change: dict[str, Any], said: str, plan: TrainingPlan, tmp_path: Path
) -> None:
    record_conditions(tmp_path, plan, ARGUMENTS)
    with pytest.raises(QatvalError, match=said):
        refuse_other(tmp_path, dataclasses.replace(plan, **change), ARGUMENTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 4}, "epochs 3, now it is 4"),
        ({"lr0": None}, r"lr0 0\.1, now it is None"),
        ({"mosaic": 0.0}, r"mosaic None, now it is 0\.0"),
    ],
)
def test_other_arguments_are_refused_by_their_name(
    change: dict[str, Any], said: str, plan: TrainingPlan, tmp_path: Path
) -> None:
    record_conditions(tmp_path, plan, ARGUMENTS)
    with pytest.raises(QatvalError, match=said) as caught:
        refuse_other(tmp_path, plan, {**ARGUMENTS, **change})
    assert "\n" not in str(caught.value)


def test_another_checkpoint_is_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    record_conditions(tmp_path, plan, ARGUMENTS)
    other = tmp_path / "other.pt"
    other.write_bytes(b"other weights")
    with pytest.raises(QatvalError, match="begun with reference"):
        refuse_other(tmp_path, dataclasses.replace(plan, reference=str(other)), ARGUMENTS)
    alone = dataclasses.replace(plan, reference=None)
    record_conditions(tmp_path, alone, ARGUMENTS)
    with pytest.raises(QatvalError, match="begun with checkpoint"):
        refuse_other(tmp_path, dataclasses.replace(alone, checkpoint=str(other)), ARGUMENTS)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{"])
def test_conditions_that_cannot_be_read_are_one_line(
    content: bytes | None, plan: TrainingPlan, tmp_path: Path
) -> None:
    record_conditions(tmp_path, plan, ARGUMENTS)
    (file,) = tmp_path.iterdir()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(QatvalError, match=r"cannot be read.*--restart"):
        refuse_other(tmp_path, plan, ARGUMENTS)


def test_a_full_disk_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"as far as there was room")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    (tmp_path / state.NAME).write_bytes(b"before")
    monkeypatch.setattr(state, "_tensors", lambda trainer: iter(()))
    monkeypatch.setattr(state, "_position", lambda trainer: None)
    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    with pytest.raises(QatvalError, match="No space left on device"):
        state.save(tmp_path, object())  # type: ignore[arg-type]
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"before"


def test_a_log_goes_back_to_an_earlier_record(tmp_path: Path) -> None:
    metric = "metrics/mAP50-95(B)"
    log = EpochLog(tmp_path, ["raw"])
    log.add("raw", 1, 2.5, {metric: 0.123456789, "val/loss": float("inf")})
    was = {which: list(records) for which, records in log.history.items()}, dict(log.tables)
    log.add("raw", 2, 5.0, {metric: float("nan"), "val/loss": 1.0})
    log.append("oscillation.csv", [{"epoch": 2, "oscillating": 0.5}])
    table = tmp_path / "raw" / "results.csv"
    rows = [f"epoch,time,{metric},val/loss", "1,2.5,0.123457,inf", "2,5,nan,1"]
    assert table.read_text().splitlines() == rows
    log.close()
    again = EpochLog(tmp_path, ["raw"])
    again.restore(*was)
    again.close()
    assert table.read_text().splitlines() == rows[:2]
    assert not (tmp_path / "oscillation.csv").exists()
    (record,) = again.history["raw"]
    assert (record.value, record.metrics) == (0.123456789, {metric: 0.123456789, "val/loss": None})
    assert len(list((tmp_path / "raw" / "tensorboard").iterdir())) == 1
