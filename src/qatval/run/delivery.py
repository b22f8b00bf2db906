"""From a trained trajectory to one method's finished run root.

The weights are frozen to integer codes, corrected if the method says so, saved, loaded again and
scored: what is reported is what was loaded from the file that is delivered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from qatval.core.progress import Progress
from qatval.core.stability import stability
from qatval.core.summary import Summary, atomic_write
from qatval.data.coco_protocol import TOLERANCE, evaluate_coco
from qatval.quant.batchnorm import drift
from qatval.quant.integer import integer_layers, share_differing
from qatval.quant.layers import LayerCoverage, quantizable
from qatval.quant.methods import Method
from qatval.run.announcement import run_name
from qatval.run.configuration import RunConfig
from qatval.run.root import RunRoot, merged
from qatval.run.trained import Trained
from qatval.train.calibration import learn_correction
from qatval.train.evaluation import Evaluation, evaluation_settings
from qatval.train.models import CheckpointInfo, Kind, load_checkpoint, save_checkpoint, sha256
from qatval.train.trajectory import Trajectory

# A reload on the CPU gives the same mAP to the last digit. GPU kernels may sum in another order.
_RELOAD_TOLERANCE = {"cpu": 0.0, "cuda": 1e-3}

_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class FailedCheck:
    """A check of the measurement that failed: its value cannot be relied on.

    Attributes:
        name: ``"reload"`` or ``"protocols"``.
        detail: One line with both values and what they may differ by.
    """

    name: str
    detail: str


def artifact_folder(config: RunConfig, method: Method, root: RunRoot) -> Path:
    """Return the folder of a run's training artifacts."""
    return root.path / "ultralytics" / run_name(config, method)


def score(
    config: RunConfig, method: Method, root: RunRoot, trained: Trained, progress: Progress
) -> None:
    """Score one method's weights and finish its run root.

    A check of the measurement that fails costs the run its success and loses nothing: the summary
    names it under ``failed_checks``.
    """
    trajectory, prepared = trained.trajectory, trained.prepared
    measured = _known_before(config, method, root, trained)
    series = [_started_from(method, trained)]
    if trajectory is not None:
        history = trajectory.history[method.arm]
        series += [math.nan if record.value is None else record.value for record in history]
        measured["history"] = [asdict(record) for record in history]
    failed: list[FailedCheck] = []
    if trajectory is None or trajectory.stopped is None:
        delivered, final = _deliver(config, method, root, trained, progress)
        if method.correction or method.rounding or method.statistics != "kept":
            if method.rounding is None:
                before = "before_qc_value" if method.correction else "before_bn_value"
                delivered["metrics"][before] = series[-1]
            series.append(final.value)
        else:
            failed += _check_reload(series[-1], final.value, prepared.device)
        failed += _check_protocols(delivered["metrics"]["coco"])
        measured = merged(measured, delivered)
    measured = merged(measured, _judged(series, prepared.fp32_value, failed))
    root.finish(measured)
    metrics = measured["metrics"]
    shown = "not a number" if metrics["final_value"] is None else f"{metrics['final_value']:.4f}"
    progress.milestone(f"{method.name}: final mAP50-95 {shown}, {measured['status']}")


def _started_from(method: Method, trained: Trained) -> float:
    """Return what the model scored that the method's training, or the method itself, began with."""
    prepared = trained.prepared
    if not method.quantized:
        return prepared.fp32_value
    model = prepared.naive if trained.trajectory is None else prepared.started
    assert model is not None
    return model.value


def _judged(series: list[float], fp32: float, failed: Sequence[FailedCheck]) -> Summary:
    verdict = stability(series, fp32)
    best = verdict.best if math.isfinite(verdict.best) else None
    return {
        "metrics": {
            "best_value": best,
            "best_epoch": None if best is None else series.index(best),
            "final_value": verdict.final if math.isfinite(verdict.final) else None,
        },
        "stability": {
            "final_over_best_ratio": verdict.ratio,
            "collapsed": verdict.collapsed,
            "degenerate": verdict.degenerate,
        },
        "failed_checks": [asdict(check) for check in failed],
        "status": "completed-failed" if failed else verdict.status,
    }


def _known_before(config: RunConfig, method: Method, root: RunRoot, trained: Trained) -> Summary:
    """Return what the training and the data say, before the method's weights are scored."""
    prepared, trajectory = trained.prepared, trained.trajectory
    subset = prepared.subset
    gpu = prepared.device.type == "cuda"
    known: Summary = {
        "model": {"checkpoint_sha256": sha256(config.checkpoint)},
        "dataset": {
            "train_images": len(subset.train),
            "val_images": len(subset.val),
            "name": subset.dataset_name,
            "identity": dict(subset.identity),
        },
        "training": {
            "steps": 0,
            "amp": False,
            "device": prepared.arguments["device"],
            "threads": prepared.threads,
            "trajectory": trained.identity,
        },
        "environment": {"gpu": torch.cuda.get_device_name(prepared.device) if gpu else None},
        "evaluation": evaluation_settings(config.profile.imgsz, config.variant.detector),
        "artifacts": {
            "val_annotations": str(subset.val_annotations),
            "val_image_dir": str(subset.val.image_dir),
        },
        "metrics": {
            "fp32_value": prepared.fp32_value,
            "ptq_value": None,
            "start_value": _started_from(method, trained),
        },
    }
    if method.quantized:
        assert prepared.naive is not None
        known["metrics"]["ptq_value"] = prepared.naive.value
        known["quantization"] = {"coverage": _coverage(prepared.naive.layers)}
    if trajectory is None:
        return known
    return merged(
        known, _of_training(trajectory, method, artifact_folder(config, method, root), root)
    )


def _of_training(trajectory: Trajectory, method: Method, folder: Path, root: RunRoot) -> Summary:
    at = folder.relative_to(root.path)
    found: Summary = {
        "method": {"stabilizers": _stabilizers(method, trajectory)},
        "training": {
            "steps": trajectory.steps,
            "amp": trajectory.amp,
            "peak_memory_mb": trajectory.peak_memory_mb,
        },
        "artifacts": {
            "results_csv": str(at / "results.csv"),
            "tensorboard_log_dir": str(at / "tensorboard"),
        },
    }
    if method.averaging is not None:
        found["method"]["ema"] = {
            "decay": trajectory.decay,
            "tau": trajectory.tau,
            "updates": trajectory.steps,
            "effective_decay": trajectory.effective_decay,
        }
    if trajectory.stopped is not None:
        found["training"]["stopped"] = trajectory.stopped
    if trajectory.oscillation is not None:
        found["oscillation"] = json.loads(msgspec.json.encode(trajectory.oscillation))
        found["artifacts"]["oscillation_csv"] = str(at / "oscillation.csv")
    return found


def _stabilizers(method: Method, trajectory: Trajectory) -> list[Summary]:
    assert method.recipe is not None
    reports = trajectory.stabilizers or [{}] * len(method.recipe.stabilizers)
    return [
        {**asdict(stabilizer), "report": report}
        for stabilizer, report in zip(method.recipe.stabilizers, reports, strict=True)
    ]


def _coverage(layers: Sequence[LayerCoverage]) -> Summary:
    return {
        "quantized": sum(layer.bits is not None for layer in layers),
        "exempt": sum(layer.bits is None for layer in layers),
        "max_levels_per_scale": None,
        "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in layers],
    }


def _deliver(
    config: RunConfig, method: Method, root: RunRoot, trained: Trained, progress: Progress
) -> tuple[Summary, Evaluation]:
    """Make the method's deployable model and score it as loaded from its file."""

    def enter(stage: str, steps: int | None = None) -> None:
        root.enter(stage)
        progress.stage(f"{method.name}: {stage}", steps)

    prepared, subset = trained.prepared, trained.prepared.subset
    if method.rounding is None:
        enter("freezing")
        model = trained.frozen(method)
    else:
        assert prepared.naive is not None
        enter("rounding", sum(layer.bits is not None for layer in prepared.naive.layers))
        model = trained.frozen(method, progress.step)
    how: dict[str, Any] = {}
    if method.averaging is not None and method.quantized:
        differing = share_differing(model, trained.frozen(replace(method, averaging=None)))
        how["ema"] = {"codes_differing_from_raw": differing}
    enter("BatchNorm drift", len(prepared.images))
    batchnorm = _drift(trained, method)
    if correction := config.correction_of(method):
        enter("correction", correction.epochs * len(prepared.images))
        model, changes = learn_correction(
            model,
            prepared.images,
            correction,
            names=None if method.quantized else quantizable(model, config.quantization),
            on_step=lambda step, loss: progress.step(step, loss=loss),
        )
        how["qc"] = {"images": prepared.images.count, "changes": changes}
    elif method.statistics != "kept":
        enter("BatchNorm statistics")
        fresh = method.statistics == "reestimated"
        model = trained.reestimated(method) if fresh else trained.shifted(method)
        how["bn"] = {"images": prepared.images.count}
    enter("final evaluation")
    folder = artifact_folder(config, method, root)
    kind: Kind = "integer" if method.quantized else "float"
    file = folder / "weights" / f"{kind}.safetensors"
    save_checkpoint(
        file,
        model,
        CheckpointInfo(
            kind=kind,
            architecture=config.variant.architecture,
            class_names=subset.class_names,
            quantization=config.quantization if method.quantized else None,
        ),
    )
    final = prepared.scorer.evaluate(load_checkpoint(file, prepared.device), keep_detections=True)
    enter("second protocol")
    coco = evaluate_coco(subset.val_annotations, final.detections, seed=_BOOTSTRAP_SEED)
    atomic_write(folder / "predictions.json", json.dumps(coco.detections, separators=(",", ":")))
    delivered: Summary = {
        "method": how,
        "batchnorm": batchnorm,
        "metrics": {
            "map50": final.metrics["metrics/mAP50(B)"],
            "precision": final.metrics["metrics/precision(B)"],
            "recall": final.metrics["metrics/recall(B)"],
            "coco": {
                "map": coco.map,
                "map50": coco.map50,
                "matched_map": coco.matched_map,
                "matched_difference": coco.matched_map - final.value,
                "interpolated_map": final.interpolated,
                "tolerance": TOLERANCE,
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
    if method.quantized:
        levels = max(layer.levels_per_scale for layer in integer_layers(model).values())
        delivered["quantization"] = {"coverage": {"max_levels_per_scale": levels}}
    return delivered, final


def _drift(trained: Trained, method: Method) -> Summary:
    """Return how far the running BatchNorm statistics are from those of the images."""
    layers = drift(trained.frozen(method), trained.reestimated(method))
    worst = max(layers, key=lambda layer: layer.kl_max)
    return {
        "images": trained.prepared.images.count,
        "kl_mean": math.fsum(layer.kl_mean for layer in layers) / len(layers),
        "kl_max": worst.kl_max,
        "worst_layer": worst.name,
        "layers": [asdict(layer) for layer in layers],
    }


def _check_reload(before: float, reloaded: float, device: torch.device) -> list[FailedCheck]:
    """Hold the delivered file to what its weights scored before they were written."""
    if abs(before - reloaded) <= _RELOAD_TOLERANCE[device.type]:
        return []
    return [
        FailedCheck(
            "reload",
            f"the delivered file scores {reloaded!r}, its weights scored {before!r} before",
        )
    ]


def _check_protocols(coco: Mapping[str, float]) -> list[FailedCheck]:
    """Hold Ultralytics' matches to pycocotools' of the same detections."""
    ours, theirs = coco["interpolated_map"], coco["matched_map"]
    if abs(ours - theirs) <= coco["tolerance"]:
        return []
    return [
        FailedCheck(
            "protocols",
            f"mAP50-95 is {ours:.4f} by Ultralytics' matches and {theirs:.4f} by pycocotools on "
            f"the same detections, interpolated alike: they may differ by {coco['tolerance']:g}",
        )
    ]
