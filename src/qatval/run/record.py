"""The run's summary: what is known before the run, and the whole of it afterwards."""

from __future__ import annotations

import datetime
import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from qatval.core import trajectory
from qatval.core.environment import git_state, machine, versions
from qatval.core.files import sha256_of
from qatval.core.measurements import FailedCheck, Metrics, StabilityRecord
from qatval.core.quantization import FLOAT_MODE, Quantization
from qatval.core.stability import COLLAPSE_THRESHOLD_RATIO, PRIMARY_METRIC, stability
from qatval.core.summary import (
    SCHEMA_VERSION,
    Artifacts,
    DatasetRecord,
    Git,
    Model,
    PrimaryContrast,
    QuantizationRecord,
    Requested,
    RunError,
    RunSummary,
    StartRecord,
    TrainingRecord,
)
from qatval.quant.methods import Method
from qatval.run.configuration import RunConfig

_DECISIVE = ("qatval", "torch", "ultralytics", "brevitas")


def run_name(config: RunConfig, method: Method) -> str:
    """Return the name that test ids, folders and reports use for a run."""
    return f"{config.variant.name}-{method.name}-{config.profile.name}-seed{config.seed}"


def announced(config: RunConfig, method: Method) -> RunSummary:
    """Return the summary of a run that has not measured anything yet."""
    now = datetime.datetime.now(datetime.UTC)
    profile = config.profile
    return RunSummary(
        schema_version=SCHEMA_VERSION,
        run_id=f"{run_name(config, method)}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        created_at=now.isoformat(timespec="seconds"),
        status="incomplete",
        git=Git(**git_state()),
        model=Model(config.variant.name, str(config.checkpoint), profile.imgsz),
        quantization=_quantization(config.quantization)
        if method.quantized
        else QuantizationRecord(FLOAT_MODE, None, None, None),
        method=config.settled(method).announced(),
        dataset=DatasetRecord(
            coco_root=str(config.coco_root),
            dataset_yaml="dataset/dataset.yaml",
            train_images=None,
            val_images=None,
            requested=Requested(profile.train_images, profile.val_images),
        ),
        training=TrainingRecord(
            framework="ultralytics",
            profile=profile.name,
            epochs=profile.epochs,
            batch=profile.batch,
            seed=config.seed,
            device=config.device or "auto",
            amp=config.amp,
            fused=config.fused,
            tracked=config.track,
            batchnorm=profile.batchnorm,
            overrides=dict(profile.overrides),
        ),
        artifacts=Artifacts(str(config.root_of(method.name).resolve()), None, None),
        metrics=Metrics(PRIMARY_METRIC, None, None),
        stability=StabilityRecord(COLLAPSE_THRESHOLD_RATIO, None, None),
        environment={**versions(), **machine()},
        configuration=_configuration(config, method),
        primary=PrimaryContrast(*config.primary),
        series=config.series,
        error=RunError(type="Running", message="the run has not finished", stage="start"),
    )


def finished(
    summary: RunSummary,
    series: Sequence[float],
    failed: Sequence[FailedCheck],
) -> RunSummary:
    """Return a summary with the verdict on it.

    Args:
        summary: With everything that was measured.
        series: The primary metric in order: the start, every epoch, what came after the training;
            NaN where it is no number.
        failed: Checks of the measurement that failed. They cost the run its success and lose
            nothing.
    """
    verdict = stability(series, summary.metrics.fp32_value)
    best = verdict.best if math.isfinite(verdict.best) else None
    judged = replace(
        summary,
        metrics=replace(
            summary.metrics,
            best_value=best,
            best_epoch=None if best is None else series.index(best),
            final_value=verdict.final if math.isfinite(verdict.final) else None,
        ),
        stability=replace(
            summary.stability,
            final_over_best_ratio=verdict.ratio,
            collapsed=verdict.collapsed,
            degenerate=verdict.degenerate,
        ),
        failed_checks=tuple(failed),
        status="completed-failed" if failed else verdict.status,
    )
    stability_record = replace(judged.stability, trajectory=trajectory.of_run(judged))
    return replace(judged, stability=stability_record)


def _quantization(spec: Quantization) -> QuantizationRecord:
    return QuantizationRecord(
        mode=spec.mode,
        library="brevitas",
        weight_bit_width=spec.weight_bit_width,
        activation_bit_width=spec.activation_bit_width,
        narrow_range=spec.narrow_range,
        scale=spec.scale,
        scale_without_batchnorm=spec.scale_without_batchnorm,
        scaling=spec.scaling,
        boundary_bit_width=spec.boundary_bit_width,
        start=StartRecord(spec.start.scale, spec.start.statistics),
    )


def held(config: RunConfig) -> dict[str, Any]:
    """Return what an interrupted run must be given again to go on: all that its results depend on.

    Of files what is in them, wherever they lie. Not whether files are exported: where that fails,
    what was trained is finished without.
    """
    found = versions()
    return {
        "variant": config.variant.name,
        "method": [method.name for method in config.methods],
        "methods": {m.name: config.settled(m).settings() for m in config.methods},
        "profile": asdict(config.profile) | {"overrides": dict(config.profile.overrides)},
        "quantization": asdict(config.quantization),
        "seed": config.seed,
        "image list": _digest(config.image_list),
        "checkpoint": _digest(config.checkpoint),
        "workers": config.workers,
        "amp": config.amp,
        "fused": config.fused,
        "track": config.track,
        "version of": {name: found[name] for name in _DECISIVE},
    }


def _digest(path: Path | None) -> str | None:
    """Return a file's SHA-256, None where there is none: whoever reads it says so better."""
    return None if path is None or not path.is_file() else sha256_of(path)


def _configuration(config: RunConfig, method: Method) -> dict[str, Any]:
    """Return every setting the run was given, as it was resolved."""
    settled = {
        "variant": config.variant.name,
        "method": method.settings(),
        "correction": config.settled(method).settings()["correction"],
        "profile": {**asdict(config.profile), "overrides": dict(config.profile.overrides)},
        "quantization": {
            **asdict(config.quantization),
            "exempt": dict(config.quantization.exempt),
        },
        "seed": config.seed,
        "device": config.device,
        "workers": config.workers,
        "amp": config.amp,
        "checkpoint": str(config.checkpoint),
        "coco_root": str(config.coco_root),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settled))  # what is written is what is read back
    return plain
