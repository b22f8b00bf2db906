"""From a trained trajectory to one method's finished run root.

The weights are frozen to integer codes, corrected if the method says so, saved, loaded again and
scored: what is reported is what was loaded from the file that is delivered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qatval.config import Arm, Method, RunConfig
from qatval.data.coco_protocol import CocoResult, evaluate_coco
from qatval.data.subset import Subset
from qatval.progress import Progress
from qatval.quant.integer import integer_layers, share_differing, to_integer
from qatval.quant.layers import LayerCoverage
from qatval.record import Summary, atomic_write
from qatval.runroot import RunRoot, merged
from qatval.summary import run_name
from qatval.train.calibration import learn_correction
from qatval.train.evaluation import Evaluation, Evaluator, evaluation_settings
from qatval.train.models import CheckpointInfo, load_checkpoint, save_checkpoint, sha256
from qatval.train.trajectory import Trajectory
from qatval.verdicts import stability

# A reload on the CPU gives the same mAP to the last digit. GPU kernels may sum in another order.
_RELOAD_TOLERANCE = {"cpu": 0.0, "cuda": 1e-3}

_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Trained:
    """What all methods that share a training have in common.

    Attributes:
        subset: The data.
        scorer: Scores models on its validation images.
        device: Where models run.
        arguments: Ultralytics' arguments.
        fp32_value: mAP 50-95 of the FP32 checkpoint.
        ptq_value: mAP 50-95 of the quantized model before any training.
        layers: What became of each layer.
        trajectory: What the training left.
        trajectory_id: Identifies the training.
        threads: CPU threads of torch.
    """

    subset: Subset
    scorer: Evaluator
    device: torch.device
    arguments: Mapping[str, Any]
    fp32_value: float
    ptq_value: float
    layers: list[LayerCoverage]
    trajectory: Trajectory
    trajectory_id: str
    threads: int
    _frozen: dict[Arm, nn.Module] = field(default_factory=dict, init=False)

    def frozen(self, arm: Arm) -> nn.Module:
        """Return an arm's last weights as integer codes, made once for all methods."""
        if arm not in self._frozen:
            self._frozen[arm] = to_integer(load_checkpoint(self.trajectory.weights(arm)))
        return self._frozen[arm]


def artifact_folder(config: RunConfig, method: Method, root: RunRoot) -> Path:
    """Return the folder of a run's training artifacts."""
    return root.path / "ultralytics" / run_name(config, method)


def score(
    config: RunConfig, method: Method, root: RunRoot, trained: Trained, progress: Progress
) -> None:
    """Score one method's weights and finish its run root.

    Raises:
        RuntimeError: If the delivered file does not score what the model it was made from
            scored, or the two evaluation protocols differ by more than they may.
    """
    history = trained.trajectory.history[method.arm]
    series = [math.nan if record.value is None else record.value for record in history]
    measured = {
        **_known_before(config, method, root, trained),
        "history": [asdict(record) for record in history],
    }
    if trained.trajectory.stopped is None:
        delivered, final = _deliver(config, method, root, trained, progress)
        if method.correction is None:
            _check_reload(series[-1], final.value, trained.device)
        else:
            delivered["metrics"]["before_qc_value"] = series[-1]
            series.append(final.value)
        measured = merged(measured, delivered)
    measured = merged(measured, _judged(series))
    root.finish(measured)
    metrics = measured["metrics"]
    shown = "not a number" if metrics["final_value"] is None else f"{metrics['final_value']:.4f}"
    progress.milestone(f"{method.name}: final mAP50-95 {shown}, {measured['status']}")


def _judged(series: list[float]) -> Summary:
    verdict = stability(series)
    best = verdict.best if math.isfinite(verdict.best) else None
    return {
        "metrics": {
            "best_value": best,
            "best_epoch": None if best is None else series.index(best) + 1,
            "final_value": verdict.final if math.isfinite(verdict.final) else None,
        },
        "stability": {
            "final_over_best_ratio": verdict.ratio,
            "collapsed": verdict.collapsed,
            "degenerate": verdict.degenerate,
        },
        "status": verdict.status,
    }


def _known_before(config: RunConfig, method: Method, root: RunRoot, trained: Trained) -> Summary:
    """Return what the training and the data say, before the method's weights are scored."""
    trajectory, subset = trained.trajectory, trained.subset
    folder = artifact_folder(config, method, root).relative_to(root.path)
    average = {
        "decay": trajectory.decay,
        "tau": trajectory.tau,
        "updates": trajectory.steps,
        "effective_decay": trajectory.effective_decay,
    }
    on_gpu = trained.device.type == "cuda"
    gpu = torch.cuda.get_device_name(trained.device) if on_gpu else None
    training: dict[str, Any] = {
        "steps": trajectory.steps,
        "device": trained.arguments["device"],
        "amp": trajectory.amp,
        "threads": trained.threads,
        "trajectory": trained.trajectory_id,
    }
    if trajectory.stopped is not None:
        training["stopped"] = trajectory.stopped
    return {
        "model": {"checkpoint_sha256": sha256(config.checkpoint)},
        "quantization": {
            "coverage": {
                "quantized": sum(layer.bits is not None for layer in trained.layers),
                "exempt": sum(layer.bits is None for layer in trained.layers),
                "max_levels_per_scale": None,
                "layers": [
                    {**asdict(layer), "shape": list(layer.shape)} for layer in trained.layers
                ],
            }
        },
        "method": {"ema": average} if method.averaging is not None else {},
        "dataset": {
            "train_images": len(subset.train),
            "val_images": len(subset.val),
            "name": subset.dataset_name,
            "identity": dict(subset.identity),
        },
        "training": training,
        "environment": {"gpu": gpu},
        "evaluation": evaluation_settings(config.profile.imgsz),
        "artifacts": {
            "results_csv": str(folder / "results.csv"),
            "tensorboard_log_dir": str(folder / "tensorboard"),
            "val_annotations": str(subset.val_annotations),
            "val_image_dir": str(subset.val.image_dir),
        },
        "metrics": {"fp32_value": trained.fp32_value, "ptq_value": trained.ptq_value},
    }


def _deliver(
    config: RunConfig, method: Method, root: RunRoot, trained: Trained, progress: Progress
) -> tuple[Summary, Evaluation]:
    """Make the method's deployable model and score it as loaded from its file."""

    def enter(stage: str, steps: int | None = None) -> None:
        root.enter(stage)
        progress.stage(f"{method.name}: {stage}", steps)

    subset = trained.subset
    enter("freezing")
    model = trained.frozen(method.arm)
    how: dict[str, Any] = {}
    if method.averaging is not None:
        differing = share_differing(model, trained.frozen("raw"))
        how["ema"] = {"codes_differing_from_raw": differing}
    if correction := config.correction_of(method):
        images = min(correction.images, len(subset.train))
        enter("correction", correction.epochs * math.ceil(images / config.profile.batch))
        model, changes = learn_correction(
            model,
            subset,
            correction,
            trained.arguments,
            seed=config.seed,
            device=trained.device,
            on_step=lambda step, loss: progress.step(step, loss=loss),
        )
        how["qc"] = {"images": images, "changes": changes}
    enter("final evaluation")
    folder = artifact_folder(config, method, root)
    file = folder / "weights" / "integer.safetensors"
    save_checkpoint(
        file,
        model,
        CheckpointInfo(
            kind="integer",
            architecture=config.variant.architecture,
            class_names=subset.class_names,
            quantization=config.quantization.mode,
        ),
    )
    final = trained.scorer.evaluate(load_checkpoint(file, trained.device), keep_detections=True)
    enter("second protocol")
    coco = _second_opinion(subset, final)
    atomic_write(folder / "predictions.json", json.dumps(coco.detections, separators=(",", ":")))
    levels = max(layer.levels_per_scale for layer in integer_layers(model).values())
    delivered: Summary = {
        "method": how,
        "quantization": {"coverage": {"max_levels_per_scale": levels}},
        "metrics": {
            "map50": final.metrics["metrics/mAP50(B)"],
            "precision": final.metrics["metrics/precision(B)"],
            "recall": final.metrics["metrics/recall(B)"],
            "coco": {
                "map": coco.map,
                "map50": coco.map50,
                "matched_map": coco.matched_map,
                "matched_difference": coco.matched_map - final.value,
                "tolerance": coco.tolerance,
            },
            "bootstrap": {
                "seed": _BOOTSTRAP_SEED,
                "images": len(subset.val),
                "values": [round(float(value), 6) for value in coco.bootstrap],
            },
        },
        "artifacts": {
            "weights": str(file.relative_to(root.path)),
            "predictions": str((folder / "predictions.json").relative_to(root.path)),
        },
    }
    return delivered, final


def _check_reload(trained: float, reloaded: float, device: torch.device) -> None:
    """Hold the delivered file to what its weights scored at the end of the training."""
    if not abs(trained - reloaded) <= _RELOAD_TOLERANCE[device.type]:
        raise RuntimeError(
            f"the delivered file scores {reloaded!r}, its weights scored {trained!r} in training"
        )


def _second_opinion(subset: Subset, final: Evaluation) -> CocoResult:
    coco = evaluate_coco(subset.val_annotations, final.detections, seed=_BOOTSTRAP_SEED)
    if not abs(coco.matched_map - final.value) <= coco.tolerance:
        raise RuntimeError(
            f"mAP50-95 is {final.value:.4f} by Ultralytics and {coco.matched_map:.4f} by "
            f"pycocotools on the same detections: they may differ by {coco.tolerance:.4f}"
        )
    return coco
