"""A run in detail: its facts, and its charts along the epochs and across the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qatval.analysis import falls
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.measurements import (
    BatchNormDrift,
    EpochRecord,
    LayerOscillation,
    Oscillation,
    QcChange,
)
from qatval.core.stability import COLLAPSE_THRESHOLD_RATIO
from qatval.report.charts import Level, Series, line_chart, range_chart
from qatval.report.drawing import SERIES, Chart, Style
from qatval.report.group_charts import KINDS
from qatval.report.run_markdown import series_text

_LAYER_COLUMNS: dict[str, Callable[[LayerOscillation], str]] = {
    "layer": lambda layer: layer.name,
    "weights": lambda layer: f"{layer.weights:,}",
    "oscillating": lambda layer: formatting.percent(layer.oscillating),
    "code changes a weight": lambda layer: f"{layer.flips:.3g}",
    "reversals a weight": lambda layer: f"{layer.reversals:.3g}",
    "near a threshold": lambda layer: formatting.percent(layer.near_threshold),
    "steps from a threshold": lambda layer: f"{layer.threshold_distance:.3g}",
    "|log2| of the scale's change": lambda layer: f"{layer.scale_drift:.3g}",
}


def run_facts(run: LoadedRun) -> list[tuple[str, str]]:
    """Return what is to be known of a run, each fact with its name."""
    summary, metrics = run.summary, run.summary.metrics
    oscillation, batchnorm = summary.oscillation, summary.batchnorm
    ema = summary.method.ema if summary.method.ema.enabled else None
    environment, timings = summary.environment or {}, summary.timings or {}
    start = metrics.value("start_value") if run.trained else None
    facts = [
        ("best", formatting.value(metrics.best_value)),
        ("final", formatting.value(metrics.final_value)),
        ("FP32 checkpoint", formatting.value(metrics.fp32_value)),
    ]
    if run.quantized:
        facts.append((f"untrained {run.mode}", formatting.value(metrics.value("ptq_value"))))
    optional: list[tuple[str, Any, Callable[..., str]]] = [
        ("start of training", start, formatting.value),
        ("final of FP32", run.kept, formatting.percent),
        ("before QC", metrics.before_qc_value, formatting.value),
        ("before re-estimation", metrics.before_bn_value, formatting.value),
        ("effective decay", ema and ema.effective_decay, "{:.4f}".format),
        ("codes unlike raw", ema and ema.codes_differing_from_raw, formatting.percent),
        ("oscillating weights", oscillation and oscillation.oscillating, formatting.percent),
        ("BatchNorm drift", batchnorm and batchnorm.kl_mean, "{:.3g} nats".format),
        ("planned series", series_text(summary) or None, str),
        ("device", summary.training.device, str),
        ("torch", str(environment["torch"]) if "torch" in environment else None, str),
        ("time", timings.get("total"), formatting.duration),
    ]
    return facts + [(name, write(fact)) for name, fact, write in optional if fact is not None]


def run_charts(run: LoadedRun, style: Style) -> list[Chart]:
    """Return the charts of a run, drawn in the style of its method, as far as there are any."""
    summary = run.summary
    history = summary.history or ()
    charts = [
        _accuracy(run, history, style),
        _losses(run, history),
        *_corrections(summary.method.qc.changes or {}),
        *(_oscillation(summary.oscillation) if summary.oscillation else ()),
        _batchnorm(summary.batchnorm) if summary.batchnorm else None,
    ]
    return [chart for chart in charts if chart is not None]


def _accuracy(run: LoadedRun, history: Sequence[EpochRecord], style: Style) -> Chart | None:
    method, metrics = run.summary.method, run.summary.metrics
    points: list[tuple[float, float | None]] = [(epoch.epoch, epoch.value) for epoch in history]
    names: dict[float, str] = {}
    if points and (start := metrics.value("start_value")) is not None:
        points.insert(0, (0.0, start))
        names[0.0] = "start"
    step = "QC" if method.qc.enabled else "BN" if method.bn and method.bn.enabled else None
    if step is not None and run.final is not None and points:
        after = points[-1][0] + 1
        points.append((after, run.final))
        names[after] = step
    if metrics.best_value is None:
        return None
    levels = [Level("collapse", COLLAPSE_THRESHOLD_RATIO * metrics.best_value, "collapse")]
    for label, metric in (("FP32", "fp32_value"), (f"untrained {run.mode}", "ptq_value")):
        if (value := metrics.value(metric)) is not None:
            levels.append(Level(label, value, KINDS[metric]))
    return line_chart(
        "mAP 50-95 per epoch",
        f"A final value below the collapse line, half of the best, is a collapse.{_marked(run)}",
        [Series(run.method, style, points)],
        x_names=names,
        levels=levels,
        spans=_falls(run),
        zero=True,
        show=formatting.value,
    )


def _falls(run: LoadedRun) -> list[tuple[float, float]]:
    """Return the first and the last epoch of each fall within the training."""
    found, history = run.course, run.summary.history
    if found is None or not history:
        return []
    return [
        (fall.epoch, history[-1].epoch if fall.recovered is None else fall.recovered - 1)
        for fall in found.falls
        if fall.epoch is not None
    ]


def _marked(run: LoadedRun) -> str:
    """Say what the bars along the axis are, nothing where there are none."""
    if run.course is None or not _falls(run):
        return ""
    said = falls.headline(run.course, run.summary.method.afterwards)
    return f" The bars along the axis mark epochs below half of the best until then: {said}."


def _losses(run: LoadedRun, history: Sequence[EpochRecord]) -> Chart | None:
    sums = [(epoch.epoch, _summed(epoch, "train/"), _summed(epoch, "val/")) for epoch in history]
    return line_chart(
        "Loss per epoch",
        "Sum of the detection losses, on training and on validation images."
        + (" The bars mark the epochs in which mAP fell." if _falls(run) else ""),
        _two(("training", "validation"), sums),
        spans=_falls(run),
        show="{:.2f}".format,
    )


def _two(
    names: tuple[str, str], points: Sequence[tuple[float, float | None, float | None]]
) -> list[Series]:
    """Return two lines that belong to no method."""
    return [
        Series(name, style, [(point[0], point[place]) for point in points])
        for place, (name, style) in enumerate(zip(names, SERIES, strict=True), start=1)
    ]


def _summed(epoch: EpochRecord, prefix: str) -> float | None:
    metrics = (epoch.metrics or {}).items()
    parts = [value for name, value in metrics if name.startswith(prefix) and value is not None]
    return sum(parts) if parts else None


def _corrections(changes: dict[str, QcChange]) -> list[Chart | None]:
    return [
        range_chart(
            "What QC changed: gamma",
            "Range of gamma over the channels of each layer; 1 leaves a channel as it was.",
            [(name, change.gamma_min, change.gamma_max) for name, change in changes.items()],
            unchanged=1.0,
            header=["layer", "smallest gamma", "largest gamma"],
            show="{:.4f}".format,
        ),
        range_chart(
            "What QC changed: beta",
            "Largest size of beta over the channels of each layer; 0 leaves them as they were.",
            [(name, 0.0, change.beta_max_abs) for name, change in changes.items()],
            header=["layer", "smallest", "largest size of beta"],
            show="{:.4f}".format,
        ),
    ]


def _oscillation(found: Oscillation) -> list[Chart | None]:
    shares = [(e.epoch, e.oscillating, e.near_threshold) for e in found.epochs]
    steps = [(e.epoch, e.change_rate, e.reversal_rate) for e in found.epochs]
    return [
        line_chart(
            "Oscillation: weights",
            "Share of the weights that oscillate, and of those within 0.05 steps of a rounding "
            "threshold: 10 %, the dotted line, if they were spread evenly. These are the raw "
            "weights, which all methods of a training share.",
            _two(("oscillating", "near a threshold"), shares),
            levels=[Level("", 0.1, "even")],
            show=formatting.percent,
            zero=True,
        ),
        line_chart(
            "Oscillation: steps",
            "Share of the weights that change their integer code in a step, and that change it "
            "against their last direction.",
            _two(("change their code", "turn back"), steps),
            show=formatting.percent,
            zero=True,
        ),
        range_chart(
            "Oscillation: layers",
            "Share of each layer's weights that oscillate at the end.",
            [(layer.name, 0.0, layer.oscillating) for layer in found.layers],
            header=[*_LAYER_COLUMNS],
            show=formatting.percent,
            table=[[write(layer) for write in _LAYER_COLUMNS.values()] for layer in found.layers],
        ),
    ]


def _batchnorm(drift: BatchNormDrift) -> Chart | None:
    return range_chart(
        "BatchNorm drift",
        "KL divergence of each layer's running statistics from re-estimated ones, from its mean "
        "over the channels to its largest; 0 is no drift.",
        [(layer.name, layer.kl_mean, layer.kl_max) for layer in drift.layers],
        header=["layer", "mean over channels", "largest"],
        show="{:.3g}".format,
    )
