"""A builder of schema-valid run summaries, for every test that needs a finished run.

Plain functions, so that benchmarks can use them too; tests get them as fixtures.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from qatval.analysis.thresholds import Thresholds

Summary = dict[str, Any]

_LAYERS = ("model.0.conv", "model.1.conv", "model.23.one2one_cv3.0.2", "model.23.dfl.conv")
_DFL = "a frozen arange(16): signed int4 cannot hold 0..15"


class MakeSummary(Protocol):
    def __call__(
        self,
        method: str = ...,
        seed: int = ...,
        values: Sequence[float] = ...,
        *,
        variant: str = ...,
        changes: Mapping[str, Any] | None = ...,
        **more: Any,
    ) -> Summary: ...


class WriteRun(Protocol):
    def __call__(self, name: str, summary: Summary | None = ..., **more: Any) -> Path: ...


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
) -> Summary:
    """Build the summary of a run as qatval writes it.

    Args:
        method: Name made of parts, as ``qatval.quant.methods`` spells it.
        seed: Of the run; methods of equal seed and equal training parts share a training.
        values: mAP 50-95 per epoch; for a method with QC or re-estimation the last one is that
            afterwards, and for an untrained one all others are left out.
        variant, dataset, profile: What was trained on what.
        mode, scale: Of the quantization, unless the method trains in float.
        error: Makes the run incomplete, for this reason.
        resamples: Of the validation images; 0 leaves them out.
        changes: Merged into the result; a None in it removes a key.
    """
    parts = method.split("+")
    is_float, untrained = "fp32" in parts, "ptq" in parts
    afterwards = bool({"qc", "bn"} & set(parts))
    epochs = [] if untrained else values[:-1] if afterwards else values
    if untrained:
        values = values[-1:]
    collapsed = bool(values) and max(values) > 0 and values[-1] < 0.5 * max(values)
    degenerate = max(values, default=0) < 0.00682
    status = "completed-failed" if collapsed or degenerate else "completed-success"
    summary: Summary = {
        "schema_version": "1.1",
        "run_id": f"{variant}-{method}-{profile}-seed{seed}",
        "created_at": "2026-03-01T12:00:00+00:00",
        "status": "incomplete" if error else status,
        "git": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "branch": "main",
            "dirty": False,
        },
        "model": {"variant": variant, "checkpoint": f"models/{variant}.safetensors", "imgsz": 128},
        "quantization": _FLOAT if is_float else _quantization(mode, scale),
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
            "trajectory": None if untrained else _trajectory(parts, variant, profile, mode, seed),
            "epochs": 6,
            "batch": 16,
            "seed": seed,
            "device": "cpu",
            "amp": False,
            "overrides": {"optimizer": "AdamW", "lr0": 0.001},
            "threads": 2,
            "steps": 0 if untrained else 96,
        },
        "evaluation": {
            "imgsz": 128,
            "rect": False,
            "conf": 0.001,
            "max_det": 300,
            "head": "one2one",
        },
        "artifacts": {
            "run_root": "runs/somewhere",
            "results_csv": None if untrained else "ultralytics/train/results.csv",
            "tensorboard_log_dir": None if untrained else "ultralytics/train/tensorboard",
        },
        "metrics": {
            "primary_name": "metrics/mAP50-95(B)",
            "best_value": max(values, default=None),
            "final_value": None if error else values[-1],
            "fp32_value": 0.682,
            "ptq_value": None if is_float else 0.601,
            "start_value": 0.682 if is_float else 0.601 if untrained else 0.603,
            "before_qc_value": values[-2] if "qc" in parts and not error else None,
            "before_bn_value": values[-2] if "bn" in parts and not error else None,
        },
        "stability": {
            "collapse_threshold_ratio": 0.5,
            "final_over_best_ratio": None
            if error or max(values) <= 0
            else values[-1] / max(values),
            "collapsed": None if error else collapsed,
        },
        "history": [_epoch(number, value) for number, value in enumerate(epochs, start=1)],
        "timings": {"dataset": 1.2, "baseline": 9.4, "training": 43.0, "total": 61.7},
        "environment": {
            "python": "3.11.9",
            "torch": "2.15.0+cpu",
            "ultralytics": "8.4.190",
            "brevitas": "0.13.4",
            "cpu": "a processor",
            "gpu": None,
        },
    }
    if error:
        summary["error"] = {"message": error, "type": "RuntimeError", "stage": "training"}
    elif resamples:
        summary["metrics"]["bootstrap"] = {
            "seed": 0,
            "images": 128,
            "values": _resampled(values[-1], method, seed, resamples),
        }
    if not error:
        summary["batchnorm"] = _batchnorm()
        if not (is_float or untrained):
            summary["oscillation"] = _oscillation(len(epochs))
    return _merged(summary, changes or {})


def reduce_to_required(summary: Summary) -> Summary:
    """Return a summary as an older tool wrote it: with only the schema's required keys."""
    kept = {
        "git": ("commit", "branch", "dirty"),
        "model": ("variant", "checkpoint", "imgsz"),
        "quantization": ("mode", "library", "weight_bit_width", "activation_bit_width"),
        "dataset": ("coco_root", "dataset_yaml", "train_images", "val_images"),
        "training": ("framework", "epochs", "batch", "seed", "device", "amp", "overrides"),
        "artifacts": ("run_root", "results_csv", "tensorboard_log_dir"),
        "metrics": ("primary_name", "best_value", "final_value"),
        "stability": ("collapse_threshold_ratio", "final_over_best_ratio", "collapsed"),
    }
    old = {key: {k: summary[key][k] for k in keys} for key, keys in kept.items()}
    old |= {key: summary[key] for key in ("schema_version", "run_id", "created_at", "status")}
    ema = {k: summary["method"]["ema"][k] for k in ("enabled", "decay", "tau")}
    qc = {k: summary["method"]["qc"][k] for k in ("enabled", "epochs", "lr", "bn_stats_fixed")}
    old["method"] = {"variant": summary["method"]["variant"], "ema": ema, "qc": qc}
    return old | ({"error": summary["error"]} if "error" in summary else {})


def record_references(*waivers: Mapping[str, Any], **values: float) -> Thresholds:
    """Return thresholds with a reference of tolerance 0.02 per method of the builder's scenarios.

    They hold under the conditions of the builder's default runs.

    Args:
        waivers: See the schema.
        values: By method, ``ema_qc`` standing for ``ema+qc``.
    """
    scenario = {"dataset": "shapes", "variant": "yolo10n", "profile": "smoke"} | {
        "quantization": "w4a16 per-channel learned from max shifted",
        "imgsz": 128,
        "epochs": 6,
        "batch": 16,
    }
    references = [
        {**scenario, "method": name.replace("_", "+"), "value": value, "tolerance": 0.02}
        for name, value in values.items()
    ]
    return Thresholds(Path("thresholds.json"), 0.032, 0.008, tuple(references), waivers)


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Thresholds]:
    return record_references


@pytest.fixture(scope="session")
def make_summary() -> MakeSummary:
    return build_summary


@pytest.fixture(scope="session")
def required_only() -> Callable[[Summary], Summary]:
    return reduce_to_required


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run root below `tmp_path / "runs"`; keywords go to the builder."""

    def write(name: str, summary: Summary | None = None, **more: Any) -> Path:
        root = tmp_path / "runs" / name
        root.mkdir(parents=True)
        content = summary if summary is not None else build_summary(**more)
        (root / "run_summary.json").write_text(json.dumps(content))
        return root

    return write


_FLOAT = {
    "mode": "fp32",
    "library": None,
    "weight_bit_width": None,
    "activation_bit_width": None,
}


def _quantization(mode: str, scale: str) -> dict[str, Any]:
    bits, activation_bits = (int(number) for number in mode[1:].split("a"))
    return {
        "mode": mode,
        "library": "brevitas",
        "weight_bit_width": bits,
        "activation_bit_width": None if activation_bits == 16 else activation_bits,
        "narrow_range": True,
        "scale": scale,
        "scale_without_batchnorm": "per-channel",
        "scaling": "learned",
        "start": {"scale": "max", "statistics": "shifted"},
        "boundary_bit_width": None,
        "coverage": {
            "quantized": len(_LAYERS) - 1,
            "exempt": 1,
            "max_levels_per_scale": 2**bits - 1,
            "layers": [_layer(name, bits, scale) for name in _LAYERS],
        },
    }


def _trajectory(parts: Sequence[str], variant: str, profile: str, mode: str, seed: int) -> str:
    training = [part for part in parts if part in ("fp32", "dampen", "freeze")]
    precision = "fp32" if "fp32" in parts else mode
    return "-".join((variant, profile, precision, *training, str(seed)))


_STABILIZERS = {
    "dampen": ("qatval.quant.dampening:Dampening", {"weight": 0.01}, {"penalty": 1.25}),
    "freeze": ("qatval.quant.freezing:Freezing", {"momentum": 0.01}, {"frozen": 0.043}),
}


def _method(parts: Sequence[str]) -> dict[str, Any]:
    averaged, with_qc, fresh = (part in parts for part in ("ema", "qc", "bn"))
    quantized = "fp32" not in parts
    return {
        "variant": "+".join(parts),
        "training": "none" if "ptq" in parts else "quantized" if quantized else "float",
        "stabilizers": [
            {"implementation": implementation, "settings": settings, "report": report}
            for part, (implementation, settings, report) in _STABILIZERS.items()
            if part in parts
        ],
        "ema": {
            "enabled": averaged,
            "decay": 0.948 if averaged else None,
            "tau": 9.6 if averaged else None,
            "effective_decay": 0.9479 if averaged else None,
            "codes_differing_from_raw": 0.031 if averaged and quantized else None,
        },
        "bn": {"enabled": fresh, "images": 256 if fresh else None},
        "qc": {
            "enabled": with_qc,
            "epochs": 1 if with_qc else None,
            "lr": 1e-3 if with_qc else None,
            "bn_stats_fixed": True if with_qc else None,
            "images": 256 if with_qc else None,
        }
        | (
            {
                "changes": {
                    name: {
                        "gamma_min": 0.991 - 0.002 * number,
                        "gamma_max": 1.008 + 0.001 * number,
                        "gamma_mean_abs_change": 0.0041,
                        "beta_max_abs": 0.006 + 0.001 * number,
                    }
                    for number, name in enumerate(_LAYERS[:-1])
                }
            }
            if with_qc
            else {}
        ),
    }


def _oscillation(epochs: int) -> dict[str, Any]:
    layers = [
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
        for number, name in enumerate(_LAYERS[:-1])
    ]
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
        "layers": layers,
    }


def _batchnorm() -> dict[str, Any]:
    layers = [
        {"name": name.replace("conv", "bn"), "kl_mean": 0.004 + 0.003 * number, "kl_max": 0.08}
        for number, name in enumerate(_LAYERS[:2])
    ]
    return {
        "images": 256,
        "kl_mean": 0.0055,
        "kl_max": 0.08,
        "worst_layer": "model.1.bn",
        "layers": layers,
    }


def _layer(name: str, bits: int, scale: str) -> dict[str, Any]:
    if "dfl" in name:
        return {"name": name, "bits": None, "scale": None, "reason": _DFL}
    return {"name": name, "bits": bits, "scale": scale, "reason": None}


def _identity(dataset: str, seed: int) -> dict[str, Any]:
    def digest(text: str) -> str:
        return hashlib.sha256(f"{dataset} {text}".encode()).hexdigest()

    return {
        "dataset": dataset,
        "builder_version": 1,
        "annotations": {"train": digest("train"), "val": digest("val")},
        "train": {
            "rule": "random",
            "seed": seed,
            "images": 256,
            "image_ids_sha256": digest(f"train ids {seed}"),
        },
        "val": {
            "rule": "first",
            "seed": None,
            "images": 128,
            "image_ids_sha256": digest("val ids"),
        },
    }


def _epoch(number: int, value: float) -> dict[str, Any]:
    return {
        "epoch": number,
        "value": value,
        "seconds": 7.1,
        "metrics": {
            "train/box_loss": 1.4 / number**0.3,
            "train/cls_loss": 1.1 / number**0.4,
            "val/box_loss": 1.5 / number**0.25,
            "val/cls_loss": 1.2 / number**0.3,
        },
    }


def _resampled(value: float, method: str, seed: int, count: int) -> list[float]:
    images = random.Random("images")
    own = random.Random(f"{method} {seed}")
    return [value + images.gauss(0, 0.016) + own.gauss(0, 0.003) for _ in range(count)]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(base))
    for key, change in changes.items():
        if change is None and isinstance(result.get(key), dict | list):
            del result[key]
        elif isinstance(change, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], change)
        else:
            result[key] = change
    return result
