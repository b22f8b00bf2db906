"""Exported files are scored in a process of their own; what becomes of that process is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.unit.deploy.files import CELLS, SIDE, card, write_file
from torch import nn

from qatval.core.deployment import DeploymentRecord
from qatval.core.errors import QatvalError
from qatval.data.shapes import draw_dataset
from qatval.data.subset import Subset, build_subset
from qatval.deploy.card import Card
from qatval.run import deployment
from qatval.run.deployment import Deployment
from qatval.testing import build_summary

LISTED, ASKED_FOR = 3, 2
"""Validation images: a list may name more than the profile would take."""


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Subset:
    root = tmp_path_factory.mktemp("data")
    draw_dataset(root / "shapes", train_images=2, val_images=LISTED, size=SIDE)
    return build_subset(
        root / "shapes", train_images=None, val_images=None, seed=0, cache_dir=root / "cache"
    )


@pytest.fixture(autouse=True)
def one_convolution(subset: Subset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is exported as a network of one convolution, to be run by ONNX Runtime alone."""

    def told(*_: Any, **__: Any) -> Card:
        own = card(class_names=subset.class_names)
        return replace(own, origin=replace(own.origin, val_images=ASKED_FOR))

    monkeypatch.setattr(deployment, "card_of", told)
    monkeypatch.setattr(deployment, "export_onnx", lambda _, own, out: write_file(out, own))
    monkeypatch.setattr(deployment, "installed", lambda: ("onnxruntime",))


def exported(subset: Subset, folder: Path) -> DeploymentRecord:
    """Go the way of a run's deliveries."""
    weights, predictions = folder / "weights.safetensors", folder / "predictions.json"
    weights.write_bytes(b"")
    predictions.write_text("[]")
    model, summary = nn.Identity(), build_summary()
    made = Deployment(model, weights, summary, subset=subset, directory=folder, threads=1)
    return made.of(model, weights, 0.5, predictions, folder / "-out" / "m.onnx", summary)


def test_a_file_is_scored_on_all_images_of_the_run(
    subset: Subset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('this module is somebody else\\'s')")
    monkeypatch.chdir(tmp_path)
    record = exported(subset, Path())
    assert (record.exported.file, record.fp32.file) == ("m.onnx", None)
    (own,), (reference,) = record.exported.runtimes, record.fp32.runtimes
    assert reference.agreement is None
    assert own.agreement is not None
    assert own.agreement.detections == LISTED * CELLS**2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["-out"]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"\(exit code -9\)"),
        (r"import os; os.write(2, b'loading\nno \xff file\n')", r"\(no \ufffd file\)"),
    ],
)
def test_a_process_that_fails_is_told_before_any_training(
    program: str, said: str, subset: Subset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "_QATVAL", (sys.executable, "-c", program))
    with pytest.raises(QatvalError, match=rf"{said}; without --export the same command goes on$"):
        Deployment(
            *(nn.Identity(), Path(__file__), build_summary()),
            subset=subset,
            directory=tmp_path,
            threads=1,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]
