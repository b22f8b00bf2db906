"""The parts of a run summary: what is known before the run, and what was measured in it."""

from __future__ import annotations

import datetime
import json
import secrets
from dataclasses import asdict
from typing import Any

from qatval.core.environment import git_state, machine, versions
from qatval.core.quantization import Quantization
from qatval.core.stability import COLLAPSE_THRESHOLD_RATIO, PRIMARY_METRIC
from qatval.core.summary import SCHEMA_VERSION, Summary
from qatval.quant.methods import Method
from qatval.run.configuration import RunConfig


def run_name(config: RunConfig, method: Method) -> str:
    """Return the name that test ids, folders and reports use for a run."""
    return f"{config.variant.name}-{method.name}-{config.profile.name}-seed{config.seed}"


def announced(config: RunConfig, method: Method) -> Summary:
    """Return the summary of a run that has not measured anything yet."""
    now = datetime.datetime.now(datetime.UTC)
    name = run_name(config, method)
    profile = config.profile
    correction = config.correction_of(method)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{name}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        "created_at": now.isoformat(timespec="seconds"),
        "status": "incomplete",
        "git": git_state(),
        "model": {
            "variant": config.variant.name,
            "checkpoint": str(config.checkpoint),
            "imgsz": profile.imgsz,
        },
        "quantization": _quantization(config.quantization) if method.quantized else _FLOAT,
        "method": {
            "variant": method.name,
            "ema": {"enabled": method.averaging is not None, "decay": None, "tau": None},
            "qc": {
                "enabled": correction is not None,
                "epochs": correction.epochs if correction else None,
                "lr": correction.lr if correction else None,
                "bn_stats_fixed": True if correction else None,
            },
            "bn": {
                "enabled": method.statistics != "kept",
                "how": method.statistics,
                "images": None,
            },
            "teacher": asdict(t) if method.recipe and (t := method.recipe.teacher) else None,
            "rounding": asdict(method.rounding) | {"by": "gptq"} if method.rounding else None,
            "training": _training(method),
            "stabilizers": [
                {**asdict(stabilizer), "report": {}}
                for stabilizer in (method.recipe.stabilizers if method.recipe else ())
            ],
        },
        "dataset": {
            "coco_root": str(config.coco_root),
            "dataset_yaml": "dataset/dataset.yaml",
            "train_images": None,
            "val_images": None,
            "requested": {"train_images": profile.train_images, "val_images": profile.val_images},
        },
        "training": {
            "framework": "ultralytics",
            "profile": profile.name,
            "epochs": profile.epochs,
            "batch": profile.batch,
            "seed": config.seed,
            "device": config.device or "auto",
            "amp": config.amp,
            "fused": config.fused,
            "tracked": config.track,
            "batchnorm": profile.batchnorm,
            "overrides": dict(profile.overrides),
        },
        "artifacts": {
            "run_root": str(config.root_of(method.name).resolve()),
            "results_csv": None,
            "tensorboard_log_dir": None,
        },
        "metrics": {"primary_name": PRIMARY_METRIC, "best_value": None, "final_value": None},
        "stability": {
            "collapse_threshold_ratio": COLLAPSE_THRESHOLD_RATIO,
            "final_over_best_ratio": None,
            "collapsed": None,
        },
        "environment": {**versions(), **machine()},
        "configuration": _configuration(config, method),
    }


_FLOAT: dict[str, Any] = {
    "mode": "fp32",
    "library": None,
    "weight_bit_width": None,
    "activation_bit_width": None,
}


def _training(method: Method) -> str:
    if method.recipe is None:
        return "none"
    return "quantized" if method.quantized else "float"


def _quantization(spec: Quantization) -> dict[str, Any]:
    return {
        "mode": spec.mode,
        "library": "brevitas",
        "weight_bit_width": spec.weight_bit_width,
        "activation_bit_width": spec.activation_bit_width,
        "narrow_range": spec.narrow_range,
        "scale": spec.scale,
        "scale_without_batchnorm": spec.scale_without_batchnorm,
        "scaling": spec.scaling,
        "boundary_bit_width": spec.boundary_bit_width,
        "start": asdict(spec.start),
    }


def _configuration(config: RunConfig, method: Method) -> dict[str, Any]:
    """Return every setting the run was given, as it was resolved."""
    settled = {
        "variant": config.variant.name,
        "method": asdict(method),
        "correction": asdict(c) if (c := config.correction_of(method)) else None,
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
