"""Trainings that truly fail: the autopsy names why, and changes nothing.

One seed of each; ``benchmarks/autopsy.py`` has more, beside trainings that hold.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from qatval.core import interruption
from qatval.core.errors import QatvalError
from qatval.core.measurements import Autopsy
from qatval.core.summary import RunSummary

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

NAMES = (
    "learning rate",
    "learning rate in FP32",
    "signed average",
    "scale driven to zero",
    "overflow in float16",
    "stale statistics",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qatval.data.shapes import draw_dataset

    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_the_cause_is_named(name: str, dataset: Path, tmp_path: Path) -> None:
    from qatval.run.autopsy import RESTORED

    from .failures import FAILURES, run

    assert set(NAMES) == set(FAILURES)
    failure = FAILURES[name]
    (summary,) = run(failure, 0, tmp_path / "run", dataset)
    found = summary.autopsies
    assert found
    assert {one.cause for one in found} == {failure.cause}
    if failure.layer is not None:
        assert {one.layer for one in found} == {failure.layer}
    for one in found:
        assert one.good is not None
        assert one.broken is not None
        assert one.broken < 0.5 * one.good
        if failure.cause != "training":
            assert one.restored is not None
            assert one.restored > RESTORED
        scored = one.images * (2 + len(one.probes))
        assert summary.dataset.val_images is not None
        assert scored <= summary.dataset.val_images
    assert "cause: " in (tmp_path / "run" / "summary.md").read_text("utf-8").lower()


def test_weights_that_are_no_numbers_are_not_probed(dataset: Path, tmp_path: Path) -> None:
    from .failures import NO_NUMBERS, run

    size = {"train_images": 32, "val_images": 16, "imgsz": 64, "epochs": 2}
    (summary,) = run(NO_NUMBERS, 0, tmp_path / "run", dataset, **size)
    assert summary.training.stopped is not None
    (found,) = summary.autopsies
    assert found == Autopsy(epoch=1, images=0, cause="training")


def without_traces(root: Path) -> dict[str, Any]:
    """Return a summary without its autopsies and what names, places and times it."""
    summary = json.loads((root / "run_summary.json").read_text("utf-8"))
    for name in ("run_id", "created_at", "timings", "git", "resumed", "autopsies"):
        summary.pop(name, None)
    exact = (".safetensors", "predictions.json")
    summary["files"] = {k: v for k, v in summary["files"].items() if k.endswith(exact)}
    summary["history"] = [{**epoch, "seconds": None} for epoch in summary["history"]]
    for name in ("trajectory", "peak_memory_mb"):
        del summary["training"][name]
    del summary["artifacts"]["run_root"]
    return summary


def interrupted(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def never(summary: RunSummary) -> bool:
    return False


@pytest.mark.usefixtures("heeded_signals")
def test_an_autopsy_changes_nothing_and_goes_on_where_it_was_stopped(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qatval.run import autopsy, delivery
    from qatval.train import kept_weights

    from .failures import FAILURES, run

    failure = FAILURES["scale driven to zero"]
    methods = ("baseline", "ema+bn")
    size = {"train_images": 64, "val_images": 64, "imgsz": 64}

    def go(name: str) -> tuple[list[tuple[Autopsy, ...]], list[dict[str, Any]]]:
        found = run(failure, 0, tmp_path / name, dataset, methods, **size)
        roots = [tmp_path / name / method for method in methods]
        return [summary.autopsies for summary in found], list(map(without_traces, roots))

    found, examined = go("examined")
    assert found[0]

    monkeypatch.setattr(kept_weights.shutil, "copyfile", full)
    with pytest.raises(QatvalError, match=r"a disk is full .*No space left on device"):
        go("interrupted")
    monkeypatch.undo()
    monkeypatch.setattr(autopsy, "repairs", interrupted)
    with interruption.listening(), pytest.raises(KeyboardInterrupt, match="interrupted by SIGINT"):
        go("interrupted")
    monkeypatch.undo()
    with interruption.listening():  # as another command does
        assert go("interrupted") == (found, examined)
    assert list((tmp_path / "interrupted").rglob(".*")) == []  # nor the weights kept of falls

    monkeypatch.setattr(delivery, "has_fallen", never)
    assert go("not examined") == ([(), ()], examined)
