"""Whether a schedule makes 4, 3 or 2 bits collapse where FP32 holds: one training, scored twice.

    python benchmarks/collapse.py --bits 3 --head per-tensor --lr 0.03 --warmup 6 --epochs 12
    python benchmarks/collapse.py --bits 32 --lr 0.03 --warmup 6 --epochs 12      # its FP32 control

SGD with momentum on the embedded data, as in ``docs/collapse.md``: from the embedded checkpoint or
from scratch, a constant learning rate after a linear warm-up. Prints mAP 50-95 of the raw and of
the averaged weights after every epoch, and the verdict on each. Nothing is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import REPOSITORY
from qatval.core import presets as config
from qatval.core.environment import prepare_process
from qatval.core.option_types import positive, seed
from qatval.core.stability import stability
from qatval.quant import methods

FLOAT = 32


def verdict(values: Sequence[float | None]) -> str:
    """Judge a series by the rule that runs are judged by."""
    found = stability([math.nan if value is None else value for value in values])
    outcome = "collapsed" if found.collapsed else "never learned" if found.degenerate else "held"
    return f"best {found.best:.3f}, final {found.final:.3f}: {outcome}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, choices=(2, 3, 4, 8, FLOAT), default=4)
    parser.add_argument("--head", choices=("per-tensor", "per-channel"), default="per-channel")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--warmup", type=float, default=1.0, help="epochs")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--epochs", type=positive, default=12)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--scratch", action="store_true", help="start from random weights")
    args = parser.parse_args()
    prepare_process()
    os.chdir(REPOSITORY)  # checkpoints are named relative to it

    import torch

    from qatval.data.shapes import draw_dataset
    from qatval.data.subset import build_subset
    from qatval.train.trainer import QatTrainer, train
    from qatval.train.trajectory import TrainingPlan

    spec = dataclasses.replace(
        config.quantization("w4a16"),
        weight_bit_width=min(args.bits, 8),
        scale_without_batchnorm=args.head,
    )
    averaging = methods.method("ema").averaging
    assert averaging is not None

    def on_epoch(trainer: QatTrainer) -> None:
        values = ", ".join(f"{which} {value:.4f}" for which, value in trainer.values().items())
        print(f"epoch {trainer.epoch + 1}/{trainer.epochs}: {values}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_dataset(folder / "shapes")
        subset = build_subset(
            folder / "shapes",
            train_images=256,
            val_images=128,
            seed=args.seed,
            cache_dir=folder / "cache",
        )
        checkpoint = config.variant("yolo10n").checkpoint_for("shapes").resolve()
        plan = TrainingPlan(
            subset=str(subset.directory),
            architecture="yolov10n.yaml",
            checkpoint=None if args.scratch else str(checkpoint),
            quantization=None if args.bits == FLOAT else spec,
            averaging=averaging,
            scored=("raw", "ema"),
            threads=torch.get_num_threads(),
        )
        arguments = {
            "optimizer": "SGD",
            "lr0": args.lr,
            "lrf": 1.0,
            "momentum": 0.9,
            "warmup_momentum": 0.9,
            "warmup_epochs": args.warmup,
            "warmup_bias_lr": 0.0,
            "weight_decay": args.weight_decay,
            "nbs": 16,
            "batch": 16,
            "mosaic": 0.0,
            "imgsz": 128,
            "epochs": args.epochs,
            "seed": args.seed,
            "device": "cpu",
            "workers": 0,
            "amp": False,
        }
        left = train(folder / "work", plan, arguments, {"on_fit_epoch_end": on_epoch})
    for which, history in left.history.items():
        print(f"{which}: {verdict([record.value for record in history])}")


if __name__ == "__main__":
    main()
