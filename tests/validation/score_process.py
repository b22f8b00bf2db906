"""Scores a checkpoint on a dataset, alone or as one of several ranks; prints what it found.

Arguments: the COCO root, the checkpoint.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader

from qatval.data.subset import build_subset
from qatval.train.dataset import SubsetDataset
from qatval.train.evaluation import Evaluator
from qatval.train.models import load_pretrained


def main(data: Path, checkpoint: Path) -> None:
    rank = int(os.environ.get("RANK", "-1"))
    if rank >= 0:
        dist.init_process_group("gloo")
    subset = build_subset(
        data, train_images=None, val_images=None, seed=0, cache_dir=data.parent / "cache"
    )
    args = get_cfg(overrides={"task": "detect", "mode": "train", "imgsz": 128, "epochs": 1})
    dataset = SubsetDataset(subset.val, subset.class_names, args, batch=4)
    scorer = Evaluator(
        build_dataloader(dataset, 4, 0, shuffle=False, rank=rank, device="cpu"),
        subset,
        args=args,
        device=torch.device("cpu"),
        save_dir=data,
    )
    model = load_pretrained(checkpoint, "yolov10n.yaml", subset.class_names)
    (result,) = scorer.evaluate_together([model], with_losses=True)
    if rank <= 0:
        print("value", repr(result.value), sorted(result.losses))
    if rank >= 0:
        dist.barrier()  # a rank that is gone takes the connection with it that another still reads
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
