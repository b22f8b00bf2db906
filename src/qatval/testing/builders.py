"""Build run summaries as qatval writes them, without a run: for tests and benchmarks.

The values are made up; all else is what a run of the smoke profile on the embedded data records.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from qatval.analysis.rules import Limits
from qatval.analysis.runs import LoadedRun
from qatval.analysis.thresholds import Thresholds
from qatval.core.measurements import Record
from qatval.core.summary import SCHEMA_VERSION, RunSummary

AnyRecord = TypeVar("AnyRecord", bound=Record)

_QUANTIZED = ("model.0.conv", "model.1.conv", "model.23.one2one_cv3.0.2")
_EXEMPT = {
    "name": "model.23.dfl.conv",
    "bits": None,
    "scale": None,
    "reason": "a frozen arange(16): signed int4 cannot hold 0..15",
}
_STABILIZERS = {
    name: {"implementation": f"qatval.quant.{part}", "settings": settings, "report": report}
    for name, part, settings, report in (
        ("dampen", "dampening:Dampening", {"weight": 0.01}, {"penalty": 1.25}),
        ("freeze", "freezing:Freezing", {"momentum": 0.01}, {"frozen": 0.043}),
    )
}


def build_summary(
    method: str = "ema+qc",
    seed: int = 0,
    values: Sequence[float] = (0.41, 0.60, 0.64),
    *,
    variant: str = "yolo10n",
    dataset: str = "shapes",
    profile: str = "smoke",
    mode: str = "w4a16",
    scale: str = "per-channel",
    error: str | None = None,
    resamples: int = 50,
    changes: Mapping[str, Any] | None = None,
) -> RunSummary:
    """Build the summary of a run.

    Args:
        method: Name made of parts, as ``qatval.quant.methods`` spells it.
        seed: Of the run; methods of equal seed and equal training parts share a training.
        values: mAP 50-95 per epoch; for a method with QC or re-estimation the last one is that
            afterwards, and for an untrained one all others are left out.
        variant, dataset, profile: What was trained on what.
        mode, scale: Of the quantization, unless the method trains in float.
        error: Makes the run incomplete, for this reason.
        resamples: Of the validation images; 0 leaves them out.
        changes: See `changed`.
    """
    parts = method.split("+")
    in_float, untrained = "fp32" in parts, "ptq" in parts
    afterwards = bool({"qc", "bn"} & set(parts))
    epochs = [] if untrained else values[:-1] if afterwards else values
    if untrained:
        values = values[-1:]
    best = max(values, default=0.0)
    collapsed = best > 0 and values[-1] < 0.5 * best
    failed = collapsed or best < 0.00682
    document = {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{variant}-{method}-{profile}-seed{seed}",
        "created_at": "2026-03-01T12:00:00+00:00",
        "status": "incomplete" if error else f"completed-{'failed' if failed else 'success'}",
        "git": {"commit": "0123456789abcdef" * 2 + "01234567", "branch": "main", "dirty": False},
        "model": {"variant": variant, "checkpoint": f"models/{variant}.safetensors", "imgsz": 128},
        "quantization": _quantization("fp32" if in_float else mode, scale),
        "method": _method(parts),
        "dataset": {
            "coco_root": "datasets/shapes",
            "dataset_yaml": "dataset/dataset.yaml",
            "train_images": 256,
            "val_images": 128,
            "name": dataset,
            "identity": _identity(dataset, seed),
        },
        "training": {
            "framework": "ultralytics",
            "profile": profile,
            "epochs": 6,
            "batch": 16,
            "seed": seed,
            "device": "cpu",
            "amp": False,
            "overrides": {"optimizer": "AdamW", "lr0": 0.001},
            "steps": 0 if untrained else 96,
            "threads": 2,
            "trajectory": None if untrained else _trajectory(parts, variant, profile, mode, seed),
        },
        "artifacts": {
            "run_root": "runs/somewhere",
            "results_csv": None if untrained else "ultralytics/train/results.csv",
            "tensorboard_log_dir": None if untrained else "ultralytics/train/tensorboard",
        },
        "metrics": {
            "primary_name": "metrics/mAP50-95(B)",
            "best_value": best if values else None,
            "final_value": None if error else values[-1],
            "fp32_value": 0.682,
            "ptq_value": None if in_float else 0.601,
            "start_value": 0.682 if in_float else 0.601 if untrained else 0.603,
            "bootstrap": None if error else _bootstrap(values[-1], method, seed, resamples),
            "before_qc_value": values[-2] if "qc" in parts and not error else None,
            "before_bn_value": values[-2] if "bn" in parts and not error else None,
        },
        "stability": {
            "collapse_threshold_ratio": 0.5,
            "final_over_best_ratio": None if error or best <= 0 else values[-1] / best,
            "collapsed": None if error else collapsed,
        },
        "environment": {
            "python": "3.11.9",
            "torch": "2.15.0+cpu",
            "ultralytics": "8.4.190",
            "brevitas": "0.13.4",
            "cpu": "a processor",
            "gpu": None,
        },
        "error": {"type": "RuntimeError", "message": error, "stage": "training"} if error else None,
        "history": [_epoch(number, value, seed) for number, value in enumerate(epochs, start=1)],
        "evaluation": {
            "imgsz": 128,
            "rect": False,
            "conf": 0.001,
            "max_det": 300,
            "head": "one2one",
        },
        "oscillation": None if error or in_float or untrained else _oscillation(len(epochs)),
        "batchnorm": None if error else _batchnorm(),
        "timings": {"dataset": 1.2, "baseline": 9.4, "training": 43.0, "total": 61.7},
    }
    return msgspec.convert(merged(document, changes or {}), RunSummary)


def changed(summary: RunSummary, changes: Mapping[str, Any]) -> RunSummary:
    """Return a summary with some values replaced, nested as in the JSON; ``UNSET`` removes one.

    Raises:
        msgspec.ValidationError: If no run could have left that behind.
    """
    return msgspec.convert(merged(as_json(summary), changes), RunSummary)


def as_json(summary: RunSummary) -> dict[str, Any]:
    """Return a summary as the JSON that a reader of its file gets."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(summary))
    return document


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with some of its values replaced, as `changed` describes it."""
    result = dict(document)
    for key, change in changes.items():
        inner = result.get(key)
        if isinstance(change, Mapping) and isinstance(inner, Mapping):
            result[key] = merged(inner, change)
        else:
            result[key] = change
    return {key: value for key, value in result.items() if value is not UNSET}


def reduced_to_required(record: AnyRecord) -> AnyRecord:
    """Return a summary as the oldest tools wrote it: with what the schema requires, no more."""
    kept = {}
    for field in msgspec.structs.fields(record):
        if field.required or field.name == "error":
            value = getattr(record, field.name)
            kept[field.name] = reduced_to_required(value) if isinstance(value, Record) else value
    return type(record)(**kept)


def loaded(summary: RunSummary, root: Path = Path("runs/somewhere")) -> LoadedRun:
    """Return a run as if it had been read from a run root."""
    return LoadedRun(root, summary, as_json(summary))


def build_thresholds(*waivers: Mapping[str, Any], **values: float) -> Thresholds:
    """Return thresholds with a reference of tolerance 0.02 per method, for the default runs.

    Args:
        waivers: See the schema.
        values: By method, ``ema_qc`` standing for ``ema+qc``.
    """
    scenario = {
        "dataset": "shapes",
        "variant": "yolo10n",
        "profile": "smoke",
        "quantization": "w4a16 per-channel learned from max shifted",
        "imgsz": 128,
        "epochs": 6,
        "batch": 16,
    }
    references = [
        {**scenario, "method": name.replace("_", "+"), "value": value, "tolerance": 0.02}
        for name, value in values.items()
    ]
    limits = Limits(0.047, 0.012, 0.001, 0.2)
    return Thresholds(Path("thresholds.json"), limits, tuple(references), waivers)


def _quantization(mode: str, scale: str) -> dict[str, Any]:
    if mode == "fp32":
        unused = ("library", "weight_bit_width", "activation_bit_width")
        return {"mode": mode, **dict.fromkeys(unused)}
    bits, activation_bits = (int(number) for number in mode[1:].split("a"))
    quantized = {"bits": bits, "scale": scale, "reason": None}
    return {
        "mode": mode,
        "library": "brevitas",
        "weight_bit_width": bits,
        "activation_bit_width": None if activation_bits == 16 else activation_bits,
        "narrow_range": True,
        "scale": scale,
        "scale_without_batchnorm": "per-channel",
        "scaling": "learned",
        "boundary_bit_width": None,
        "start": {"scale": "max", "statistics": "shifted"},
        "coverage": {
            "quantized": len(_QUANTIZED),
            "exempt": 1,
            "max_levels_per_scale": 2**bits - 1,
            "layers": [*({"name": name, **quantized} for name in _QUANTIZED), _EXEMPT],
        },
    }


def _trajectory(parts: Sequence[str], variant: str, profile: str, mode: str, seed: int) -> str:
    training = [part for part in parts if part in ("fp32", "dampen", "freeze")]
    precision = "fp32" if "fp32" in parts else mode
    return "-".join((variant, profile, precision, *training, str(seed)))


def _method(parts: Sequence[str]) -> dict[str, Any]:
    averaged, corrected, fresh = (part in parts for part in ("ema", "qc", "bn"))
    quantized = "fp32" not in parts
    average: dict[str, float | None] = {"decay": 0.948, "tau": 9.6, "effective_decay": 0.9479}
    average["codes_differing_from_raw"] = 0.031 if quantized else None
    return {
        "variant": "+".join(parts),
        "ema": {"enabled": averaged, "decay": None, "tau": None} | (average if averaged else {}),
        "qc": {"enabled": corrected, "epochs": None, "lr": None, "bn_stats_fixed": None}
        | (_correction() if corrected else {}),
        "bn": {"enabled": fresh, "images": 256 if fresh else None},
        "training": "none" if "ptq" in parts else "quantized" if quantized else "float",
        "stabilizers": [report for part, report in _STABILIZERS.items() if part in parts],
    }


def _correction() -> dict[str, Any]:
    changes = {
        name: {
            "gamma_min": 0.991 - 0.002 * number,
            "gamma_max": 1.008 + 0.001 * number,
            "gamma_mean_abs_change": 0.0041,
            "beta_max_abs": 0.006 + 0.001 * number,
        }
        for number, name in enumerate(_QUANTIZED)
    }
    return {"epochs": 1, "lr": 1e-3, "bn_stats_fixed": True, "images": 256, "changes": changes}


def _oscillation(epochs: int) -> dict[str, Any]:
    return {
        "momentum": 0.01,
        "threshold": 0.005,
        "steps": 16 * epochs,
        "oscillating": 0.008 + 0.006 * epochs,
        "epochs": [
            {
                "epoch": epoch,
                "oscillating": 0.008 + 0.006 * epoch,
                "change_rate": 0.0042 / epoch**0.5,
                "reversal_rate": 0.0011 / epoch**0.3,
                "near_threshold": 0.101 + 0.004 * epoch,
                "threshold_distance": 0.25 - 0.002 * epoch,
                "scale_drift": 0.011 * epoch,
            }
            for epoch in range(1, epochs + 1)
        ],
        "layers": [
            {
                "name": name,
                "weights": 432 * 4**number,
                "oscillating": 0.012 + 0.017 * number,
                "flips": 0.41 + 0.2 * number,
                "reversals": 0.11 + 0.1 * number,
                "near_threshold": 0.105 + 0.02 * number,
                "threshold_distance": 0.246 - 0.01 * number,
                "scale_drift": 0.02 + 0.03 * number,
            }
            for number, name in enumerate(_QUANTIZED)
        ],
    }


def _batchnorm() -> dict[str, Any]:
    layers = [
        {"name": f"model.{number}.bn", "kl_mean": 0.004 + 0.003 * number, "kl_max": 0.08}
        for number in range(2)
    ]
    worst = {"kl_max": 0.08, "worst_layer": "model.1.bn"}
    return {"images": 256, "kl_mean": 0.0055, **worst, "layers": layers}


def _identity(dataset: str, seed: int) -> dict[str, Any]:
    def digest(text: str) -> str:
        return hashlib.sha256(f"{dataset} {text}".encode()).hexdigest()

    def split(rule: str, seed: int | None, images: int, ids: str) -> dict[str, Any]:
        return {"rule": rule, "seed": seed, "images": images, "image_ids_sha256": digest(ids)}

    return {
        "dataset": dataset,
        "builder_version": 1,
        "annotations": {"train": digest("train"), "val": digest("val")},
        "train": split("random", seed, 256, f"train ids {seed}"),
        "val": split("first", None, 128, "val ids"),
    }


def _epoch(number: int, value: float, seed: int) -> dict[str, Any]:
    losses = {
        "train/box_loss": 1.4 / number**0.3 + 1e-6 * seed,  # no two seeds have equal histories
        "train/cls_loss": 1.1 / number**0.4,
        "val/box_loss": 1.5 / number**0.25,
        "val/cls_loss": 1.2 / number**0.3,
    }
    return {"epoch": number, "value": value, "metrics": losses, "seconds": 7.1}


def _bootstrap(value: float, method: str, seed: int, resamples: int) -> dict[str, Any] | None:
    images, own = random.Random("images"), random.Random(f"{method} {seed}")
    values = [value + images.gauss(0, 0.016) + own.gauss(0, 0.003) for _ in range(resamples)]
    return {"seed": 0, "images": 128, "values": values} if values else None
