"""The run itself: from a checkpoint and a dataset to measured values.

Data flow one way: subset -> FP32 model -> untrained 4-bit model -> one training -> for each
method its weights, frozen to integer codes, corrected if the method says so, saved, loaded again
and scored. What is reported is what was loaded from the file that is delivered.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qatval.config import Averaging, Method, RunConfig
from qatval.config import method as method_preset
from qatval.data.coco_protocol import PROTOCOL_TOLERANCE, CocoResult, evaluate_coco
from qatval.data.folder import write_dataset_folder
from qatval.data.subset import Subset, build_subset
from qatval.errors import QatvalError
from qatval.progress import Progress
from qatval.quant.integer import integer_layers, to_integer
from qatval.quant.layers import (
    LayerCoverage,
    coverage,
    insert_quantizers,
    model_codes,
    share_differing,
)
from qatval.record import Summary, atomic_write
from qatval.runroot import RunRoot, merged, publish
from qatval.summary import run_name
from qatval.train import LOGGER
from qatval.train.calibration import learn_correction
from qatval.train.evaluation import Evaluation, Evaluator, evaluation_settings, evaluator
from qatval.train.models import (
    CheckpointInfo,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
    sha256,
)
from qatval.train.trainer import QatTrainer, TrainingPlan, Trajectory, read_trajectory, train
from qatval.verdicts import stability

# A reload on the CPU gives the same mAP to the last digit. GPU kernels may sum in another order.
_RELOAD_TOLERANCE = {"cpu": 0.0, "cuda": 1e-3}


@dataclass(frozen=True)
class _Common:
    """What all methods of a training have in common."""

    subset: Subset
    scorer: Evaluator
    device: torch.device
    arguments: Mapping[str, Any]
    fp32: Evaluation
    ptq: Evaluation
    layers: list[LayerCoverage]
    trajectory: Trajectory
    trajectory_id: str
    threads: int


def execute(
    config: RunConfig, roots: Mapping[str, RunRoot], work: Path, progress: Progress
) -> None:
    """Run one training, score each method on it and finish its run root.

    Args:
        config: What to run.
        roots: Claimed run root of each method, by name.
        work: Folder for what belongs to no single root; the caller removes it.
        progress: Where to show how far it is.

    Raises:
        QatvalError: For whatever the user can change.
    """
    with _logging_to(root.path / "ultralytics.log" for root in roots.values()):
        common = _train(config, roots, work, progress)
        for method in config.methods:
            _score(config, method, roots[method.name], common, progress)


def _train(
    config: RunConfig, roots: Mapping[str, RunRoot], work: Path, progress: Progress
) -> _Common:
    def enter(stage: str, total: int | None = None) -> None:
        for root in roots.values():
            root.enter(stage)
        progress.stage(stage, total)

    enter("subset")
    threads = torch.get_num_threads()  # the cores there are, or OMP_NUM_THREADS
    device_name = config.device or ("0" if torch.cuda.is_available() else "cpu")
    device = _device(device_name)
    profile, variant = config.profile, config.variant
    subset = build_subset(
        config.coco_root,
        train_images=profile.train_images,
        val_images=profile.val_images,
        seed=config.seed,
        cache_dir=config.cache_dir,
    )
    for root in roots.values():
        write_dataset_folder(subset, root.path / "dataset")

    enter("FP32 checkpoint")
    arguments = {
        **profile.overrides,
        "epochs": profile.epochs,
        "batch": profile.batch,
        "imgsz": profile.imgsz,
        "seed": config.seed,
        "device": device_name,
        "workers": config.workers,
        "amp": config.amp,
    }
    scorer = evaluator(subset, arguments, device, work)
    model = load_pretrained(config.checkpoint, variant.architecture, subset.class_names)
    fp32 = scorer.evaluate(model.to(device))
    progress.milestone(f"FP32 checkpoint: mAP50-95 {fp32.value:.4f}")

    enter("untrained W4 model")
    insert_quantizers(model, config.quantization)
    layers = coverage(model, config.quantization)
    ptq = scorer.evaluate(model)
    progress.milestone(f"untrained W4 model: mAP50-95 {ptq.value:.4f}")
    del model

    enter("training", profile.epochs * math.ceil(len(subset.train) / profile.batch))
    plan = TrainingPlan(
        subset=str(subset.directory),
        architecture=variant.architecture,
        checkpoint=str(config.checkpoint.resolve()),
        quantization=config.quantization,
        averaging=_averaging(config.methods),
        arms=tuple(dict.fromkeys(method.arm for method in config.methods)),
        threads=threads,
    )
    try:
        trajectory = train(work, plan, arguments, _training_callbacks(progress))
    finally:
        _publish_training(config, work, roots)
    enter("other methods")
    return _Common(
        subset=subset,
        scorer=scorer,
        device=device,
        arguments=arguments,
        fp32=fp32,
        ptq=ptq,
        layers=layers,
        trajectory=trajectory,
        trajectory_id=uuid.uuid4().hex,
        threads=threads,
    )


def _averaging(methods: Sequence[Method]) -> Averaging:
    """Return how the trajectory's one average is made; methods sharing it must agree."""
    wanted = {method.averaging for method in methods if method.averaging is not None}
    if len(wanted) > 1:
        raise QatvalError(
            "methods with different averaging cannot share a training: run them one by one"
        )
    # With baseline alone nobody looks at the average; it is made all the same, so that the
    # training is the one that methods asked for together would share.
    return wanted.pop() if wanted else _default_averaging()


def _default_averaging() -> Averaging:
    averaging = method_preset("ema").averaging
    assert averaging is not None
    return averaging


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    indices = name.split(",")
    if not all(index.isdigit() for index in indices):
        raise QatvalError(f"--device must be cpu, 0 or a list such as 0,1, got '{name}'")
    count = torch.cuda.device_count()
    if count <= max(map(int, indices)):
        raise QatvalError(
            f"--device {name} asks for a GPU that is not there ({count} visible): use "
            "--device cpu, or see 'qatval doctor'"
        )
    return torch.device("cuda", int(indices[0]))


def _training_callbacks(progress: Progress) -> dict[str, Any]:
    steps = 0

    def on_batch(trainer: QatTrainer) -> None:
        nonlocal steps
        steps += 1
        values = {"loss": float(trainer.loss), "epoch": trainer.epoch + 1}
        progress.step(steps, **values, **{f"mAP {k}": v for k, v in trainer.values().items()})

    def on_epoch(trainer: QatTrainer) -> None:
        values = ", ".join(f"{arm} {value:.4f}" for arm, value in trainer.values().items())
        progress.milestone(f"epoch {trainer.epoch + 1}/{trainer.epochs}: mAP50-95 {values}")

    return {"on_train_batch_end": on_batch, "on_fit_epoch_end": on_epoch}


def _publish_training(config: RunConfig, work: Path, roots: Mapping[str, RunRoot]) -> None:
    """Give each root its arm's files, also those of a training that did not get to its end."""
    for method in config.methods:
        folder = _artifacts(config, method, roots[method.name])
        publish(work / "training", folder, ["args.yaml"])
        publish(
            work / "training" / method.arm, folder, ["results.csv", "tensorboard", "weights"]
        )
        if (work / "trajectory.json").exists():
            history = read_trajectory(work).history[method.arm]
            roots[method.name].summary["history"] = [asdict(record) for record in history]


def _artifacts(config: RunConfig, method: Method, root: RunRoot) -> Path:
    return root.path / "ultralytics" / run_name(config, method)


def _score(
    config: RunConfig, method: Method, root: RunRoot, common: _Common, progress: Progress
) -> None:
    """Freeze, correct, save, reload and score one method's weights, then finish its root."""
    trajectory = common.trajectory
    history = trajectory.history[method.arm]
    series = [math.nan if record.value is None else record.value for record in history]
    measured: Summary = {
        **_measured_before(config, method, root, common),
        "history": [asdict(record) for record in history],
    }
    if trajectory.stopped is None:
        final = _deliver(config, method, root, common, progress)
        if method.correction is not None:
            measured["metrics"]["before_qc_value"] = series[-1]
            series.append(final["metrics"]["final_value"])
        measured = merged(measured, final)
    else:
        measured["training"]["stopped"] = trajectory.stopped
    verdict = stability(series)
    finite_best = verdict.best if math.isfinite(verdict.best) else None
    finite_final = verdict.final if math.isfinite(verdict.final) else None
    measured["metrics"].update(
        best_value=finite_best,
        final_value=finite_final,
        best_epoch=series.index(verdict.best) + 1 if finite_best is not None else None,
    )
    measured["stability"] = {
        "final_over_best_ratio": verdict.ratio,
        "collapsed": verdict.collapsed,
        "degenerate": verdict.degenerate,
    }
    measured["status"] = verdict.status
    root.finish(measured)
    shown = "not a number" if finite_final is None else f"{finite_final:.4f}"
    outcome = "collapsed" if verdict.collapsed else verdict.status.removeprefix("completed-")
    progress.milestone(f"{method.name}: final mAP50-95 {shown}, {outcome}")


def _measured_before(
    config: RunConfig, method: Method, root: RunRoot, common: _Common
) -> Summary:
    trajectory, subset = common.trajectory, common.subset
    folder = _artifacts(config, method, root).relative_to(root.path)
    averaged = method.averaging is not None
    return {
        "model": {"checkpoint_sha256": sha256(config.checkpoint)},
        "quantization": {
            "coverage": {
                "quantized": sum(layer.bits is not None for layer in common.layers),
                "exempt": sum(layer.bits is None for layer in common.layers),
                "max_levels_per_scale": None,
                "layers": [asdict(layer) for layer in common.layers],
            }
        },
        "method": {
            "ema": {
                "enabled": averaged,
                "decay": trajectory.decay if averaged else None,
                "tau": trajectory.tau if averaged else None,
                "updates": trajectory.steps if averaged else None,
                "effective_decay": trajectory.effective_decay if averaged else None,
            }
        },
        "dataset": {
            "train_images": len(subset.train),
            "val_images": len(subset.val),
            "name": subset.dataset_name,
            "identity": dict(subset.identity),
        },
        "training": {
            "steps": trajectory.steps,
            "device": common.arguments["device"],
            "amp": trajectory.amp,
            "threads": common.threads,
            "trajectory": common.trajectory_id,
        },
        "evaluation": evaluation_settings(config.profile.imgsz),
        "artifacts": {
            "results_csv": str(folder / "results.csv"),
            "tensorboard_log_dir": str(folder / "tensorboard"),
            "val_annotations": str(subset.val_annotations),
            "val_image_dir": str(subset.val.image_dir),
        },
        "metrics": {"fp32_value": common.fp32.value, "ptq_value": common.ptq.value},
    }


def _deliver(
    config: RunConfig, method: Method, root: RunRoot, common: _Common, progress: Progress
) -> Summary:
    """Make the deployable model of a method and score it as loaded from its file."""
    trajectory, device = common.trajectory, common.device
    latent = load_checkpoint(trajectory.weights(method.arm))
    model = to_integer(latent)
    result: Summary = {"method": {}, "metrics": {}, "training": {}}
    if method.averaging is not None:
        raw = load_checkpoint(trajectory.weights("raw"))
        result["method"]["ema"] = {
            "codes_differing_from_raw": share_differing(model_codes(latent), model_codes(raw))
        }
    if correction := config.correction_of(method):
        images = min(correction.images, len(common.subset.train))
        steps = correction.epochs * math.ceil(images / config.profile.batch)
        _enter(root, progress, f"{method.name}: learning the correction", steps)
        model, changes = learn_correction(
            model,
            common.subset,
            correction,
            common.arguments,
            seed=config.seed,
            device=device,
            on_step=lambda step, loss: progress.step(step, loss=loss),
        )
        result["method"]["qc"] = {"images": images, "changes": changes}
    _enter(root, progress, f"{method.name}: final evaluation")
    folder = _artifacts(config, method, root)
    file = folder / "weights" / "integer.safetensors"
    info = CheckpointInfo(
        kind="integer",
        architecture=config.variant.architecture,
        class_names=common.subset.class_names,
        quantization=config.quantization.mode,
    )
    save_checkpoint(file, model, info)
    before = common.scorer.evaluate(model.to(device))
    final = common.scorer.evaluate(load_checkpoint(file, device), keep_detections=True)
    _check_reload(file, before.value, final.value, device)
    if method.correction is None:
        _check_reload(file, _last_value(trajectory, method), final.value, device)
    coco = _second_opinion(common.subset, final)
    atomic_write(folder / "predictions.json", json.dumps(final.detections, separators=(",", ":")))
    levels = max(layer.levels_per_scale for layer in integer_layers(model).values())
    return merged(
        result,
        {
            "quantization": {"coverage": {"max_levels_per_scale": levels}},
            "metrics": {
                "final_value": final.value,
                "map50": final.metrics["metrics/mAP50(B)"],
                "precision": final.metrics["metrics/precision(B)"],
                "recall": final.metrics["metrics/recall(B)"],
                "coco": {
                    "map": coco.map,
                    "map50": coco.map50,
                    "matched_map": coco.matched_map,
                    "matched_difference": coco.matched_map - final.value,
                },
                "bootstrap": {
                    "seed": 0,
                    "images": len(common.subset.val),
                    "values": [round(float(value), 6) for value in coco.bootstrap],
                },
            },
            "artifacts": {
                "weights": str(file.relative_to(root.path)),
                "predictions": str((folder / "predictions.json").relative_to(root.path)),
            },
        },
    )


def _enter(root: RunRoot, progress: Progress, stage: str, total: int | None = None) -> None:
    root.enter(stage)
    progress.stage(stage, total)


def _last_value(trajectory: Trajectory, method: Method) -> float:
    value = trajectory.history[method.arm][-1].value
    return math.nan if value is None else value


def _check_reload(file: Path, expected: float, found: float, device: torch.device) -> None:
    if not abs(expected - found) <= _RELOAD_TOLERANCE[device.type]:
        raise RuntimeError(
            f"{file} scores {found!r} after loading, the model it was made from {expected!r}"
        )


def _second_opinion(subset: Subset, final: Evaluation) -> CocoResult:
    """Score the detections with pycocotools and hold the primary metric to it.

    Raises:
        RuntimeError: If the protocols differ by more than they may.
    """
    coco = evaluate_coco(subset.val_annotations, final.detections)
    if not abs(coco.matched_map - final.value) <= PROTOCOL_TOLERANCE:
        raise RuntimeError(
            f"mAP50-95 is {final.value:.4f} by Ultralytics and {coco.matched_map:.4f} by "
            f"pycocotools on the same detections: they may differ by {PROTOCOL_TOLERANCE}"
        )
    return coco


@contextlib.contextmanager
def _logging_to(files: Iterable[Path]) -> Iterator[None]:
    """Send Ultralytics' messages to the run roots' log files."""
    handlers = [logging.FileHandler(file, encoding="utf-8") for file in files]
    for handler in handlers:
        LOGGER.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()
