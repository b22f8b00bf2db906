"""A run in detail: its facts, and its charts along the epochs and across the layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qatval.analysis.document import RunEntry
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.core.summary import BatchNormDrift, EpochRecord, LayerOscillation, Oscillation, QcChange
from qatval.report.charts import Level, Series, line_chart, range_chart
from qatval.report.drawing import SERIES, Chart, Style
from qatval.report.group_charts import KINDS

_ONE, _OTHER = SERIES


@dataclass(frozen=True)
class RunView:
    """A run in detail."""

    entry: RunEntry
    style: Style
    facts: Sequence[tuple[str, str]]
    charts: Sequence[Chart]


def run_view(entry: RunEntry, run: LoadedRun, style: Style) -> RunView:
    """Return a run as the report shows it.

    Args:
        entry: The run in the comparison document.
        run: Its summary.
        style: Of its method.
    """
    summary = run.summary
    history = summary.history or ()
    changes = summary.method.qc.changes
    charts = [
        _accuracy(run, history, style),
        _losses(history),
        *(_corrections(changes) if changes else ()),
        *(_oscillation(summary.oscillation) if summary.oscillation else ()),
        _batchnorm(summary.batchnorm) if summary.batchnorm else None,
    ]
    return RunView(entry, style, _facts(run), [chart for chart in charts if chart is not None])


def _facts(run: LoadedRun) -> list[tuple[str, str]]:
    summary, metrics, ema = run.summary, run.summary.metrics, run.summary.method.ema
    facts = [
        ("best", formatting.value(metrics.best_value)),
        ("final", formatting.value(metrics.final_value)),
        ("FP32 checkpoint", formatting.value(metrics.fp32_value)),
    ]
    if run.quantized:
        facts.append((f"untrained {run.mode}", formatting.value(metrics.value("ptq_value"))))
    if (start := metrics.value("start_value")) is not None and run.trained:
        facts.append(("start of training", formatting.value(start)))
    if run.kept is not None:
        facts.append(("final of FP32", formatting.percent(run.kept)))
    if metrics.before_qc_value is not None:
        facts.append(("before QC", formatting.value(metrics.before_qc_value)))
    if metrics.before_bn_value is not None:
        facts.append(("before re-estimation", formatting.value(metrics.before_bn_value)))
    if ema.enabled and ema.effective_decay is not None:
        facts.append(("effective decay", f"{ema.effective_decay:.4f}"))
    if ema.enabled and ema.codes_differing_from_raw is not None:
        facts.append(("codes unlike raw", formatting.percent(ema.codes_differing_from_raw)))
    if summary.oscillation is not None:
        facts.append(("oscillating weights", formatting.percent(summary.oscillation.oscillating)))
    if summary.batchnorm is not None:
        facts.append(("BatchNorm drift", f"{summary.batchnorm.kl_mean:.3g} nats"))
    facts.append(("device", summary.training.device))
    if summary.environment and "torch" in summary.environment:
        facts.append(("torch", str(summary.environment["torch"])))
    if summary.timings and "total" in summary.timings:
        facts.append(("time", formatting.duration(summary.timings["total"])))
    return facts


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
    if metrics.best_value is None or not any(y is not None for _, y in points):
        return None
    levels = [Level("collapse", 0.5 * metrics.best_value, "collapse")]
    for label, metric in (("FP32", "fp32_value"), (f"untrained {run.mode}", "ptq_value")):
        if (value := metrics.value(metric)) is not None:
            levels.append(Level(label, value, KINDS[metric]))
    return line_chart(
        "mAP 50-95 per epoch",
        "A final value below the collapse line, half of the best, is a collapse.",
        [Series(run.method, style, points)],
        x_names=names,
        levels=levels,
        zero=True,
        show=formatting.value,
    )


def _losses(history: Sequence[EpochRecord]) -> Chart | None:
    series = [
        Series("training", _ONE, _summed(history, "train/")),
        Series("validation", _OTHER, _summed(history, "val/")),
    ]
    series = [s for s in series if any(y is not None for _, y in s.points)]
    if not series:
        return None
    return line_chart(
        "Loss per epoch",
        "Sum of the detection losses, on training and on validation images.",
        series,
        show=lambda value: f"{value:.2f}",
    )


def _summed(history: Iterable[EpochRecord], prefix: str) -> list[tuple[float, float | None]]:
    points: list[tuple[float, float | None]] = []
    for epoch in history:
        metrics = epoch.metrics or {}
        parts = [v for k, v in metrics.items() if k.startswith(prefix) and v is not None]
        points.append((epoch.epoch, sum(parts) if parts else None))
    return points


def _corrections(changes: dict[str, QcChange]) -> list[Chart]:
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
            unchanged=0.0,
            header=["layer", "smallest", "largest size of beta"],
            show="{:.4f}".format,
        ),
    ]


def _oscillation(found: Oscillation) -> list[Chart]:
    charts, epochs = [], found.epochs
    if epochs:
        charts += [
            line_chart(
                "Oscillation: weights",
                "Share of the weights that oscillate, and of those within 0.05 steps of a rounding "
                "threshold: 10 %, the dotted line, if they were spread evenly. These are the raw "
                "weights, which all methods of a training share.",
                [
                    Series("oscillating", _ONE, [(e.epoch, e.oscillating) for e in epochs]),
                    Series(
                        "near a threshold", _OTHER, [(e.epoch, e.near_threshold) for e in epochs]
                    ),
                ],
                levels=[Level("", 0.1, "even")],
                show=formatting.percent,
                zero=True,
            ),
            line_chart(
                "Oscillation: steps",
                "Share of the weights that change their integer code in a step, and that change it "
                "against their last direction.",
                [
                    Series("change their code", _ONE, [(e.epoch, e.change_rate) for e in epochs]),
                    Series("turn back", _OTHER, [(e.epoch, e.reversal_rate) for e in epochs]),
                ],
                show=formatting.percent,
                zero=True,
            ),
        ]
    if found.layers:
        charts.append(
            range_chart(
                "Oscillation: layers",
                "Share of each layer's weights that oscillate at the end.",
                [(layer.name, 0.0, layer.oscillating) for layer in found.layers],
                unchanged=0.0,
                header=_LAYER_COLUMNS,
                show=formatting.percent,
                table=[_layer_row(layer) for layer in found.layers],
            )
        )
    return charts


_LAYER_COLUMNS = (
    "layer",
    "weights",
    "oscillating",
    "code changes a weight",
    "reversals a weight",
    "near a threshold",
    "steps from a threshold",
    "|log2| of the scale's change",
)


def _layer_row(layer: LayerOscillation) -> list[str]:
    return [
        layer.name,
        f"{layer.weights:,}",
        formatting.percent(layer.oscillating),
        f"{layer.flips:.3g}",
        f"{layer.reversals:.3g}",
        formatting.percent(layer.near_threshold),
        f"{layer.threshold_distance:.3g}",
        f"{layer.scale_drift:.3g}",
    ]


def _batchnorm(drift: BatchNormDrift) -> Chart | None:
    if not drift.layers:
        return None
    return range_chart(
        "BatchNorm drift",
        "KL divergence of each layer's running statistics from re-estimated ones, from its mean "
        "over the channels to its largest; 0 is no drift.",
        [(layer.name, layer.kl_mean, layer.kl_max) for layer in drift.layers],
        unchanged=0.0,
        header=["layer", "mean over channels", "largest"],
        show="{:.3g}".format,
    )
