"""``qatval pretrain``: make the embedded checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from qatval.cli.options import add_shared
from qatval.core import presets as config
from qatval.core.option_types import positive
from qatval.core.progress import Progress
from qatval.core.stability import PRIMARY_METRIC
from qatval.run.claim import Claim


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train the embedded FP32 checkpoint from scratch on the embedded dataset",
        description="Train a detector from scratch in FP32 on the embedded dataset and write it as "
        "safetensors with a manifest (SHA-256, how it was made, its mAP) beside it. An interrupted "
        "training goes on when the same command is given again.",
    )
    parser.add_argument("--coco-root", type=Path, required=True, metavar="DIR", help="the dataset")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.safetensors", help="the checkpoint"
    )
    add_shared(parser, "--variant")
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="of the training (default: the preset's)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the training (default: 0)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, 0 or 0,1 (default: cpu)")
    add_shared(parser, "--cache-dir")
    parser.add_argument("--restart", action="store_true", help="begin an interrupted training anew")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Train and report where the checkpoint is."""
    schedule = config.pretraining("shapes")
    if args.epochs is not None:
        schedule = dataclasses.replace(schedule, epochs=args.epochs)
    variant = config.variant(args.variant)
    work = args.out.with_name(f".{args.out.name}.training")
    with Progress(f"{variant.name} pretrain") as progress, Claim() as claim:
        claim.add(work)
        if args.restart:
            shutil.rmtree(work / "training", ignore_errors=True)
        from qatval.train.pretrain import pretrain

        manifest = pretrain(
            args.coco_root,
            args.out,
            variant,
            schedule,
            work=work,
            seed=args.seed,
            device=args.device,
            cache_dir=args.cache_dir,
            progress=progress,
        )
    print(f"{args.out}  mAP50-95 {manifest['metrics'][PRIMARY_METRIC]:.4f}")
    return 0
