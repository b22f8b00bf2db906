"""Training the embedded checkpoint: a real FP32 detector for the dataset that ships with qatval."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from qatval.core.environment import machine, versions
from qatval.core.files import atomic_write, sha256_of, to_json
from qatval.core.interruption import deferred
from qatval.core.presets import Profile, Variant
from qatval.core.progress import Progress
from qatval.core.stability import PRIMARY_METRIC
from qatval.data.subset import build_subset
from qatval.quant.methods import method
from qatval.train.evaluation import evaluator
from qatval.train.models import CheckpointInfo, load_checkpoint, save_checkpoint
from qatval.train.trainer import QatTrainer, train
from qatval.train.trajectory import TrainingPlan


def pretrain(
    coco_root: Path,
    out: Path,
    variant: Variant,
    schedule: Profile,
    *,
    work: Path,
    seed: int,
    device: str,
    cache_dir: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train a variant from scratch in float and write it with a manifest beside it.

    The averaged weights are taken, as Ultralytics does when it trains in float.

    Args:
        coco_root: Dataset in COCO 2017's layout.
        out: The ``.safetensors`` file; the manifest is the ``.json`` of the same name.
        variant: What to train.
        schedule: Epochs, batch, image size and Ultralytics' arguments.
        work: Folder of the training, on the disk of ``out``: an interrupted one goes on there. It
            is removed at the end.
        seed: Seed of the training.
        device: ``"cpu"`` or CUDA indices.
        cache_dir: Where subsets are kept, or None for the default.
        progress: Where to show how far it is.

    Returns:
        The manifest.
    """
    progress.stage("subset")
    subset = build_subset(
        coco_root, train_images=None, val_images=None, seed=seed, cache_dir=cache_dir
    )
    averaging = method("ema").averaging
    assert averaging is not None
    threads = torch.get_num_threads()
    plan = TrainingPlan(
        subset=str(subset.directory),
        architecture=variant.architecture,
        checkpoint=None,
        quantization=None,
        averaging=averaging,
        scored=("ema",),
        threads=threads,
    )
    arguments = schedule.arguments(seed=seed, device=device, workers=0, amp=False)

    def on_epoch(trainer: QatTrainer) -> None:
        value = trainer.values()["ema"]
        progress.milestone(f"epoch {trainer.epoch + 1}/{trainer.epochs}: mAP50-95 {value:.4f}")

    trajectory = train(work / "training", plan, arguments, {"on_fit_epoch_end": on_epoch})
    # fp16, as official checkpoints are stored; what is scored is what loads from the file.
    model = load_checkpoint(trajectory.checkpoint("ema")).half()
    made = work / out.name
    save_checkpoint(made, model, CheckpointInfo("float", variant.architecture, subset.class_names))
    scorer = evaluator(subset, arguments, torch.device("cpu"), work)
    result = scorer.evaluate(load_checkpoint(made))
    manifest = {
        "file": out.name,
        "sha256": sha256_of(made),
        "variant": variant.name,
        "dataset": dict(subset.identity),
        "made_by": {
            "command": "qatval pretrain",
            "seed": seed,
            "epochs": schedule.epochs,
            "batch": schedule.batch,
            "imgsz": schedule.imgsz,
            "overrides": dict(schedule.overrides),
            "threads": threads,
            **versions(),
            **machine(),
        },
        "metrics": {
            PRIMARY_METRIC: result.value,
            "metrics/mAP50(B)": result.metrics["metrics/mAP50(B)"],
        },
    }
    with deferred():
        made.replace(out)
        atomic_write(out.with_suffix(".json"), to_json(manifest))
    shutil.rmtree(work, ignore_errors=True)
    return manifest
