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

from qatval.thresholds import Thresholds

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
    error: str | None = None,
    resamples: int = 50,
    changes: Mapping[str, Any] | None = None,
) -> Summary:
    """Build the summary of a run as qatval writes it.

    Args:
        method: One of the contract's methods.
        seed: Of the run; methods of equal seed share a training.
        values: mAP 50-95 per epoch; for a method with QC the last one is that after QC.
        variant, dataset, profile: What was trained on what.
        error: Makes the run incomplete, for this reason.
        resamples: Of the validation images; 0 leaves them out.
        changes: Merged into the result; a None in it removes a key.
    """
    with_qc = method == "ema+qc"
    epochs = values[:-1] if with_qc else values
    collapsed = bool(values) and max(values) > 0 and values[-1] < 0.5 * max(values)
    status = "completed-failed" if collapsed or max(values, default=0) <= 0 else "completed-success"
    summary: Summary = {
        "schema_version": "1.0",
        "run_id": f"{variant}-{method}-{profile}-seed{seed}",
        "created_at": "2026-03-01T12:00:00+00:00",
        "status": "incomplete" if error else status,
        "git": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "branch": "main",
            "dirty": False,
        },
        "model": {"variant": variant, "checkpoint": f"models/{variant}.safetensors", "imgsz": 128},
        "quantization": {
            "mode": "w4a16",
            "library": "brevitas",
            "weight_bit_width": 4,
            "activation_bit_width": None,
            "narrow_range": True,
            "scale": "per-tensor",
            "coverage": {
                "quantized": len(_LAYERS) - 1,
                "exempt": 1,
                "max_levels_per_scale": 15,
                "layers": [_layer(name) for name in _LAYERS],
            },
        },
        "method": _method(method, with_qc),
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
            "trajectory": f"{variant}-{profile}-{seed}",
            "epochs": 6,
            "batch": 16,
            "seed": seed,
            "device": "cpu",
            "amp": False,
            "overrides": {"optimizer": "AdamW", "lr0": 0.001},
            "threads": 2,
            "steps": 96,
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
            "results_csv": "ultralytics/train/results.csv",
            "tensorboard_log_dir": "ultralytics/train/tensorboard",
        },
        "metrics": {
            "primary_name": "metrics/mAP50-95(B)",
            "best_value": max(values, default=None),
            "final_value": None if error else values[-1],
            "fp32_value": 0.682,
            "ptq_value": 0.601,
            "before_qc_value": values[-2] if with_qc and not error else None,
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

    Args:
        waivers: See the schema.
        values: By method, ``ema_qc`` standing for ``ema+qc``.
    """
    scenario = {"dataset": "shapes", "variant": "yolo10n", "profile": "smoke"}
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


def _method(method: str, with_qc: bool) -> dict[str, Any]:
    averaged = method != "baseline"
    return {
        "variant": method,
        "ema": {
            "enabled": averaged,
            "decay": 0.948 if averaged else None,
            "tau": 9.6 if averaged else None,
            "effective_decay": 0.9479 if averaged else None,
            "codes_differing_from_raw": 0.031 if averaged else None,
        },
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


def _layer(name: str) -> dict[str, Any]:
    if "dfl" in name:
        return {"name": name, "bits": None, "scale": None, "reason": _DFL}
    return {"name": name, "bits": 4, "scale": "per-tensor", "reason": None}


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
