"""Scoring on several ranks, each with its share of the images, gives what one process gives.

GPUs are not needed for that: two processes on the CPU, talking through gloo.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

PROGRAM = """
import os, sys
from pathlib import Path
import torch
from torch import distributed as dist
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader
from qatval.data.subset import build_subset
from qatval.train.dataset import SubsetDataset
from qatval.train.evaluation import Evaluator
from qatval.train.models import load_pretrained

rank = int(os.environ.get("RANK", "-1"))
if rank >= 0:
    dist.init_process_group("gloo")
data, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
subset = build_subset(
    data, train_images=None, val_images=None, seed=0, cache_dir=data.parent / "cache"
)
args = get_cfg(overrides={"task": "detect", "mode": "train", "imgsz": 128, "epochs": 1})
dataset = SubsetDataset(
    subset.val, subset.class_names, imgsz=128, batch=4, augment=False, args=args
)
scorer = Evaluator(
    build_dataloader(dataset, 4, 0, shuffle=False, rank=rank, device="cpu"),
    subset.val,
    args=args,
    class_names=subset.class_names,
    category_ids=subset.category_ids,
    device=torch.device("cpu"),
    save_dir=data,
)
model = load_pretrained(checkpoint, "yolov10n.yaml", subset.class_names)
(result,) = scorer.evaluate_together([model], with_losses=True)
if rank <= 0:
    print("value", repr(result.value), sorted(result.losses))
"""


def test_ranks_together_score_what_one_process_scores(tmp_path: Path) -> None:
    from qatval.core.presets import variant
    from qatval.data.shapes import draw_dataset

    draw_dataset(tmp_path / "shapes", train_images=2, val_images=14)
    program = tmp_path / "score.py"
    program.write_text(PROGRAM)
    checkpoint = variant("yolo10n").checkpoint_for("shapes").resolve()
    arguments = [str(program), str(tmp_path / "shapes"), str(checkpoint)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def value(*command: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        output = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, check=True
        ).stdout
        (line,) = [line for line in output.splitlines() if line.startswith("value")]
        return line

    alone = value(*arguments)
    assert float(alone.split()[1]) > 0.3
    assert value(*launcher, *arguments) == alone
