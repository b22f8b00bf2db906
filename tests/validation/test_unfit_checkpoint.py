"""A checkpoint that detects nothing on the dataset makes no run from it a success."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qatval.analysis.runs import LoadedRun
from qatval.core.progress import Progress
from qatval.core.schema import violations
from qatval.core.summary import read_summary
from qatval.run import runner
from qatval.run.configuration import configure

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

EMBEDDED = Path(__file__).parents[2] / "models" / "shapes" / "yolo10n.safetensors"


def as_12_bit(root: Path) -> None:
    """Save a dataset's images as 16-bit files of which 12 bits are used, as cameras do."""
    for path in (root / "annotations").iterdir():
        document = json.loads(path.read_text())
        folder = root / path.stem.removeprefix("instances_")
        for image in document["images"]:
            grey = np.asarray(Image.open(folder / image["file_name"]).convert("L"))
            image["file_name"] = Path(image["file_name"]).with_suffix(".png").name
            Image.fromarray(grey.astype(np.uint16) * 16).save(folder / image["file_name"])
        path.write_text(json.dumps(document))


def test_photographs_that_are_read_as_nearly_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from qatval.data.shapes import draw_dataset

    draw_dataset(tmp_path / "data", train_images=16, val_images=16)
    as_12_bit(tmp_path / "data")
    config = configure(
        variant="yolo10n",
        methods=["ptq"],
        profile="smoke",
        run_root=tmp_path / "run",
        coco_root=tmp_path / "data",
        checkpoint=EMBEDDED,
        device="cpu",
        cache_dir=tmp_path / "cache",
    )
    runner.run(config, Progress("dark", quiet=True))
    recorded = read_summary(tmp_path / "run")
    summary = recorded[1]
    assert violations(summary) == []
    assert summary["metrics"]["fp32_value"] < 0.01
    assert summary["status"] == "completed-failed"
    assert "checkpoint" in [check["name"] for check in summary["failed_checks"]]
    assert "the FP32 checkpoint itself scores 0.0" in caplog.text
    assert LoadedRun(tmp_path / "run", *recorded).outcome in ("disputed", "degenerate")
