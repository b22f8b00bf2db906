"""From a training to one method's finished run folder.

The weights are frozen to integer codes, worked on by the method's parts, saved, loaded again and
scored: what is reported is what was loaded from the file that is delivered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial

import torch
from msgspec.structs import replace

from qatval.core.classes import ClassMatch
from qatval.core.deployment import RUNTIME_LABELS
from qatval.core.files import atomic_write, sha256_of
from qatval.core.measurements import (
    Bootstrap,
    CocoMetrics,
    Coverage,
    FailedCheck,
    LayerCoverage,
)
from qatval.core.progress import Progress
from qatval.core.stability import doubt_of_checkpoint
from qatval.core.summary import ClassesRecord, RunSummary
from qatval.data.coco_protocol import TOLERANCE, CocoResult, evaluate_coco
from qatval.data.labels import WORRYING_SHARE, label_warnings
from qatval.deploy.scoring import PARITY
from qatval.quant.batchnorm import drift
from qatval.quant.integer import integer_layers
from qatval.quant.methods import Method
from qatval.quant.methods.part import Context
from qatval.run.autopsy import autopsies, has_fallen
from qatval.run.configuration import RunConfig
from qatval.run.folder import RunFolder
from qatval.run.models import TrainedModels
from qatval.run.record import finished
from qatval.train.calibration import learn_correction
from qatval.train.evaluation import Evaluation, evaluation_settings
from qatval.train.models import CheckpointInfo, Kind, load_checkpoint, save_checkpoint

# A reload on the CPU gives the same mAP to the last digit. GPU kernels may sum in another order.
_RELOAD_TOLERANCE = {"cpu": 0.0, "cuda": 1e-3}

_BOOTSTRAP_SEED = 0


def deliver(
    config: RunConfig, method: Method, folder: RunFolder, trained: TrainedModels, progress: Progress
) -> None:
    """Make a method's deployable model, score it and finish its run folder.

    A training that diverged delivers nothing: its summary says what is known of it.
    """
    method = config.settled(method)
    trajectory, setup = trained.trajectory, trained.setup
    summary = _known_before(config, method, folder, trained)
    series = [setup.start_value(method)]
    if trajectory is not None:
        history = trajectory.history[method.weights]
        series += [math.nan if record.value is None else record.value for record in history]
    failed: list[FailedCheck] = []
    if trajectory is None or trajectory.stopped is None:
        summary, final, coco = _make(config, method, folder, trained, progress, summary)
        change = next((part for part in method.parts if part.changes_model), None)
        if change is None:
            failed += _check_reload(series[-1], final.value, setup.device)
        else:
            if change.value_before is not None:
                before = {change.value_before: series[-1]}
                summary = replace(summary, metrics=replace(summary.metrics, **before))
            series.append(final.value)
        failed += _check_protocols(final, coco)
        failed += _check_exported(summary, final)
    if doubt := doubt_of_checkpoint(setup.fp32_value):
        failed.append(FailedCheck("checkpoint", doubt))
    summary = finished(summary, series, failed)
    if has_fallen(summary):
        folder.enter("autopsy")
        progress.stage(f"{method.name}: autopsy")
        summary = replace(summary, autopsies=autopsies(method, summary, trained))
    folder.finish(summary)
    value = summary.metrics.final_value
    shown = "not a number" if value is None else f"{value:.4f}"
    progress.milestone(f"{method.name}: final mAP50-95 {shown}, {summary.status}")


def _known_before(
    config: RunConfig, method: Method, folder: RunFolder, trained: TrainedModels
) -> RunSummary:
    """Return the summary with what the training and the data say, before anything is delivered."""
    setup, trajectory, summary = trained.setup, trained.trajectory, folder.summary
    subset = setup.subset
    unlabelled = subset.provenance["unlabelled"]
    gpu = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else None
    training = replace(
        summary.training,
        steps=0,
        amp=False,
        device=setup.arguments["device"],
        threads=setup.threads,
        trajectory=trained.identity,
    )
    artifacts = replace(
        summary.artifacts,
        val_annotations=str(subset.val_annotations),
        val_image_dir=str(subset.val.image_dir),
    )
    metrics = replace(
        summary.metrics,
        fp32_value=setup.fp32_value,
        ptq_value=setup.naive.value if method.quantized and setup.naive else None,
        start_value=setup.start_value(method),
    )
    known = summary.method
    if trajectory is not None:
        for part in method.parts:
            known = part.trained(known, trajectory)
        training = replace(
            training,
            steps=trajectory.steps,
            amp=trajectory.amp,
            peak_memory_mb=trajectory.peak_memory_mb,
            stopped=trajectory.stopped,
        )
        artifacts = replace(
            artifacts,
            results_csv=folder.relative(folder.training / "results.csv"),
            tensorboard_log_dir=folder.relative(folder.training / "tensorboard"),
            oscillation_csv=folder.relative(folder.training / "oscillation.csv")
            if trajectory.oscillation
            else None,
        )
    quantization = summary.quantization
    if method.quantized and setup.naive:
        quantization = replace(quantization, coverage=_coverage(setup.naive.layers))
    return replace(
        summary,
        model=replace(
            summary.model,
            checkpoint_sha256=sha256_of(config.checkpoint),
            classes=_classes(setup.classes),
        ),
        quantization=quantization,
        method=known,
        dataset=replace(
            summary.dataset,
            train_images=len(subset.train),
            val_images=len(subset.val),
            name=subset.dataset_name,
            identity=dict(subset.identity),
            counts=subset.provenance["counts"],
            worrying_share=WORRYING_SHARE,
            unlabelled=unlabelled and {split: tuple(names) for split, names in unlabelled.items()},
        ),
        training=training,
        artifacts=artifacts,
        metrics=metrics,
        environment={**(summary.environment or {}), "gpu": gpu},
        history=trajectory and tuple(trajectory.history[method.weights]),
        evaluation=evaluation_settings(config.profile.imgsz, config.variant.detector),
        oscillation=trajectory and trajectory.oscillation,
        warnings=(
            *label_warnings(subset.provenance),
            *([setup.classes.said] if setup.classes.kind == "unknown" else []),
        ),
    )


def _classes(found: ClassMatch) -> ClassesRecord:
    rows = found.rows if found.kind == "mapped" else None
    return ClassesRecord(found.kind, rows, found.renamed or None)


def _coverage(layers: Sequence[LayerCoverage]) -> Coverage:
    return Coverage(
        quantized=sum(layer.bits is not None for layer in layers),
        exempt=sum(layer.bits is None for layer in layers),
        max_levels_per_scale=None,
        layers=tuple(layers),
    )


def _make(
    config: RunConfig,
    method: Method,
    folder: RunFolder,
    trained: TrainedModels,
    progress: Progress,
    summary: RunSummary,
) -> tuple[RunSummary, Evaluation, CocoResult]:
    """Make the method's deployable model, score it as loaded from its file, and record that."""

    def enter(stage: str, steps: int | None = None) -> None:
        folder.enter(stage)
        progress.stage(f"{method.name}: {stage}", steps)

    setup, subset = trained.setup, trained.setup.subset
    context = Context(
        images=setup.images,
        reference=setup.reference,
        quantization=config.quantization,
        raw=trained.raw,
        reestimated=partial(trained.reestimated, method),
        learn_correction=partial(
            learn_correction,
            images=setup.images,
            on_step=lambda step, loss: progress.step(step, loss=loss),
        ),
        stage=enter,
        step=progress.step,
    )
    enter("freezing")
    model = trained.frozen(method, context)
    enter("BatchNorm drift", len(setup.images))
    drifted = drift(model, trained.reestimated(method), setup.images.count)
    # What an overflow leaves is further off than JSON can tell.
    batchnorm = drifted if math.isfinite(drifted.kl_mean) else None
    record = summary.method
    for part in method.parts:
        model, record = part.after(model, context, record)
    enter("final evaluation")
    kind: Kind = "integer" if method.quantized else "float"
    file = folder.weights(kind)
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
    final = setup.evaluator.evaluate(load_checkpoint(file, setup.device), keep_detections=True)
    enter("second protocol")
    coco = evaluate_coco(subset.val_annotations, final.detections, seed=_BOOTSTRAP_SEED)
    atomic_write(folder.predictions, json.dumps(coco.detections, separators=(",", ":")))
    deployment = None
    if setup.deployment is not None:
        enter("export")
        out = file.with_suffix(".onnx")
        deployment = setup.deployment.of(
            load_checkpoint(file), file, final.value, folder.predictions, out, summary
        )
        exported = replace(deployment.exported, file=folder.relative(out))
        deployment = replace(deployment, exported=exported)
    assert final.interpolated is not None
    quantization = summary.quantization
    if quantization.coverage is not None:
        levels = max(layer.levels_per_scale for layer in integer_layers(model).values())
        coverage = replace(quantization.coverage, max_levels_per_scale=levels)
        quantization = replace(quantization, coverage=coverage)
    summary = replace(
        summary,
        quantization=quantization,
        method=record,
        batchnorm=batchnorm,
        deployment=deployment,
        metrics=replace(
            summary.metrics,
            map50=final.metrics["metrics/mAP50(B)"],
            precision=final.metrics["metrics/precision(B)"],
            recall=final.metrics["metrics/recall(B)"],
            coco=CocoMetrics(
                map=coco.map,
                map50=coco.map50,
                matched_map=coco.matched_map,
                matched_difference=coco.matched_map - final.value,
                interpolated_map=final.interpolated,
                tolerance=TOLERANCE,
            ),
            bootstrap=Bootstrap(
                _BOOTSTRAP_SEED,
                len(subset.val),
                tuple(round(float(value), 6) for value in coco.bootstrap),
            ),
        ),
        artifacts=replace(
            summary.artifacts,
            weights=folder.relative(file),
            predictions=folder.relative(folder.predictions),
        ),
    )
    return summary, final, coco


def _check_reload(before: float, reloaded: float, device: torch.device) -> list[FailedCheck]:
    """Hold the delivered file to what its weights scored before they were written."""
    if abs(before - reloaded) <= _RELOAD_TOLERANCE[device.type]:
        return []
    detail = f"the delivered file scores {reloaded!r}, its weights scored {before!r} before"
    return [FailedCheck("reload", detail)]


def _check_protocols(final: Evaluation, coco: CocoResult) -> list[FailedCheck]:
    """Hold Ultralytics' matches to pycocotools' of the same detections."""
    assert final.interpolated is not None
    ours, theirs = final.interpolated, coco.matched_map
    if abs(ours - theirs) <= TOLERANCE:
        return []
    return [
        FailedCheck(
            "protocols",
            f"mAP50-95 is {ours:.4f} by Ultralytics' matches and {theirs:.4f} by pycocotools on "
            f"the same detections, interpolated alike: they may differ by {TOLERANCE:g}",
        )
    ]


def _check_exported(summary: RunSummary, final: Evaluation) -> list[FailedCheck]:
    """Hold what is shipped to what is reported.

    Not where activations are quantized: every runtime rounds them anew, and a last bit more or less
    takes some to their next code, here and there alike.
    """
    if summary.deployment is None or summary.quantization.activation_bit_width is not None:
        return []
    return [
        FailedCheck(
            "exported-value",
            f"the exported file scores {runtime.value:.4f} in {RUNTIME_LABELS[runtime.name]}, the "
            f"run {final.value:.4f}: they may differ by {PARITY:g}",
        )
        for runtime in summary.deployment.exported.runtimes
        if abs(runtime.value - final.value) > PARITY
    ]
