"""Detectors beside YOLOv10, trained from scratch and then at 4 bits, on a few small images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qatval.analysis.comparison import compare
from qatval.analysis.runs import collect
from qatval.core import presets
from qatval.core.progress import Progress
from qatval.core.schema import violations
from qatval.core.summary import read_summary
from qatval.run import runner
from qatval.run.configuration import configure

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

QUIET = Progress("tiny", quiet=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qatval.data.shapes import draw_dataset

    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root, train_images=64, val_images=8, size=64)
    return root


def trained(variant: str, epochs: int, dataset: Path) -> Path:
    """Train a checkpoint from scratch."""
    from qatval.train.pretrain import pretrain

    preset = presets.pretraining("shapes")
    overrides = {**preset.overrides, "nbs": 4, "lr0": 0.005}
    schedule = dataclasses.replace(preset, epochs=epochs, batch=4, imgsz=64, overrides=overrides)
    path = dataset.parent / f"{variant}.safetensors"
    cache = dataset.parent / "cache"
    chosen = presets.variant(variant)
    pretrain(
        dataset,
        path,
        chosen,
        schedule,
        work=path.with_suffix(".training"),
        seed=0,
        device="cpu",
        cache_dir=cache,
        progress=QUIET,
    )
    return path


def run(variant: str, methods: str, checkpoint: Path, dataset: Path) -> dict[str, dict[str, Any]]:
    """Run methods on one epoch; return their summaries as read back, by name."""
    config = configure(
        variant=variant,
        methods=methods.split(","),
        profile="smoke",
        run_root=checkpoint.with_suffix(""),
        coco_root=dataset,
        checkpoint=checkpoint,
        epochs=1,
        imgsz=64,
        device="cpu",
        cache_dir=dataset.parent / "cache",
    )
    runner.run(config, QUIET)
    return {m.name: read_summary(config.root_of(m.name))[1] for m in config.methods}


def disputed_by(summary: dict[str, Any]) -> set[str]:
    return {check["name"] for check in summary["failed_checks"]}


def test_yolo26n_trains_without_distributions(dataset: Path) -> None:
    methods = "baseline,ema,ema+qc,ptq,fp32,distill+ema+qc"
    checkpoint = trained("yolo26n", 8, dataset)
    summaries = run("yolo26n", methods, checkpoint, dataset)
    for summary in summaries.values():
        assert violations(summary) == []
        assert summary["status"].startswith("completed")
        assert disputed_by(summary) <= {"checkpoint"}  # trained for seconds, it detects little
        assert summary["evaluation"]["head"] == "one2one"
        assert "nms_iou" not in summary["evaluation"]
        assert summary["metrics"]["fp32_value"] > 0.0
    for name in ("ema+qc", "distill+ema+qc"):
        coverage = summaries[name]["quantization"]["coverage"]
        assert (coverage["quantized"], coverage["exempt"]) == (126, 0)
        changes = summaries[name]["method"]["qc"]["changes"]
        assert len(changes) == 126
        # Of the four cells that the coarsest one-to-one head has at 64 px no object may be.
        still = {layer for layer, c in changes.items() if not c["gamma_mean_abs_change"]}
        assert all(layer.startswith("model.23.one2one_cv2.2.") for layer in still)
    taught = summaries["distill+ema+qc"]["history"][0]["metrics"]
    assert taught != summaries["ema"]["history"][0]["metrics"]
    runs, unreadable = collect([checkpoint.with_suffix("")])
    assert not unreadable
    assert len(compare(runs).groups) == 1


@pytest.mark.parametrize(("variant", "epochs", "layers"), [("yolo11n", 1, 87), ("yolov8n", 5, 63)])
def test_a_head_that_needs_nms_says_so(
    variant: str, epochs: int, layers: int, dataset: Path
) -> None:
    summaries = run(variant, "baseline,ema+qc", trained(variant, epochs, dataset), dataset)
    for summary in summaries.values():
        assert violations(summary) == []
        assert summary["status"].startswith("completed")
        assert disputed_by(summary) <= {"checkpoint"}  # trained for seconds, it detects little
        evaluation = summary["evaluation"]
        assert (evaluation["head"], evaluation["nms_iou"]) == ("one2many", 0.7)
        coverage = summary["quantization"]["coverage"]
        assert (coverage["quantized"], coverage["exempt"]) == (layers, 1)
    assert len(summaries["ema+qc"]["method"]["qc"]["changes"]) == layers
