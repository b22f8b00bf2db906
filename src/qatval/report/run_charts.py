"""A run in detail: its facts, and its charts along the epochs and across the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qatval.analysis.runs import LoadedRun
from qatval.core import formatting
from qatval.report.charts import Level, Series, line_chart, range_chart
from qatval.report.drawing import Chart
from qatval.report.group_charts import KINDS

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class RunView:
    """A run in detail."""

    entry: Entry
    style: int
    facts: Sequence[tuple[str, str]]
    charts: Sequence[Chart]


def run_view(entry: Entry, run: LoadedRun, style: int) -> RunView:
    """Return a run as the report shows it.

    Args:
        entry: The run in the comparison document.
        run: Its summary.
        style: Of its method.
    """
    charts = (
        _accuracy(run, style),
        _losses(run),
        *_corrections(run),
        *_oscillation(run),
        _batchnorm(run),
    )
    return RunView(entry, style, _run_facts(run), [chart for chart in charts if chart is not None])


def _run_facts(run: LoadedRun) -> list[tuple[str, str]]:
    method, training = run.section("method"), run.section("training")
    environment, ema = run.section("environment"), method["ema"]
    facts = [
        ("best", formatting.value(run.best)),
        ("final", formatting.value(run.final)),
        ("FP32 checkpoint", formatting.value(run.metric("fp32_value"))),
    ]
    if run.quantized:
        facts.append((f"untrained {run.mode}", formatting.value(run.metric("ptq_value"))))
    if (start := run.metric("start_value")) is not None and run.trained:
        facts.append(("start of training", formatting.value(start)))
    if run.kept is not None:
        facts.append(("final of FP32", formatting.percent(run.kept)))
    for what, metric in (("QC", "before_qc_value"), ("re-estimation", "before_bn_value")):
        if (before := run.metric(metric)) is not None:
            facts.append((f"before {what}", formatting.value(before)))
    if ema["enabled"]:
        if (effective := ema.get("effective_decay")) is not None:
            facts.append(("effective decay", f"{effective:.4f}"))
        if (differing := ema.get("codes_differing_from_raw")) is not None:
            facts.append(("codes unlike raw", formatting.percent(differing)))
    if (share := run.section("oscillation").get("oscillating")) is not None:
        facts.append(("oscillating weights", formatting.percent(share)))
    if (drift := run.section("batchnorm").get("kl_mean")) is not None:
        facts.append(("BatchNorm drift", f"{drift:.3g} nats"))
    facts.append(("device", str(training["device"])))
    facts += [(name, str(environment[name])) for name in ("torch",) if environment.get(name)]
    if isinstance(total := run.section("timings").get("total"), int | float):
        facts.append(("time", formatting.duration(total)))
    return facts


def _history(run: LoadedRun) -> Sequence[Entry]:
    history = run.summary.get("history") or []
    return [entry for entry in history if isinstance(entry, Mapping)]


def _accuracy(run: LoadedRun, style: int) -> Chart | None:
    points: list[tuple[float, float | None]] = [
        (float(entry["epoch"]), entry["value"]) for entry in _history(run)
    ]
    names: dict[float, str] = {}
    if points and (start := run.metric("start_value")) is not None:
        points.insert(0, (0.0, start))
        names[0.0] = "start"
    method = run.section("method")
    enabled = (name for name in ("qc", "bn") if (method.get(name) or {}).get("enabled"))
    if (step := next(enabled, None)) is not None and run.final is not None and points:
        after = points[-1][0] + 1
        points.append((after, run.final))
        names[after] = step.upper()
    if run.best is None or not any(y is not None for _, y in points):
        return None
    levels = [Level("collapse", 0.5 * run.best, "collapse")]
    for label, metric in (("FP32", "fp32_value"), (f"untrained {run.mode}", "ptq_value")):
        if (value := run.metric(metric)) is not None:
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


def _losses(run: LoadedRun) -> Chart | None:
    series = [
        Series("training", 3, _summed(run, "train/")),
        Series("validation", 4, _summed(run, "val/")),
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


def _summed(run: LoadedRun, prefix: str) -> list[tuple[float, float | None]]:
    points: list[tuple[float, float | None]] = []
    for entry in _history(run):
        metrics = entry.get("metrics") or {}
        parts = [v for k, v in metrics.items() if k.startswith(prefix) and v is not None]
        points.append((float(entry["epoch"]), sum(parts) if parts else None))
    return points


def _corrections(run: LoadedRun) -> list[Chart]:
    changes = run.section("method")["qc"].get("changes")
    if not changes:
        return []
    return [
        range_chart(
            "What QC changed: gamma",
            "Range of gamma over the channels of each layer; 1 leaves a channel as it was.",
            [(name, change["gamma_min"], change["gamma_max"]) for name, change in changes.items()],
            unchanged=1.0,
            header=["layer", "smallest gamma", "largest gamma"],
            show="{:.4f}".format,
        ),
        range_chart(
            "What QC changed: beta",
            "Largest size of beta over the channels of each layer; 0 leaves them as they were.",
            [(name, 0.0, change["beta_max_abs"]) for name, change in changes.items()],
            unchanged=0.0,
            header=["layer", "smallest", "largest size of beta"],
            show="{:.4f}".format,
        ),
    ]


def _oscillation(run: LoadedRun) -> list[Chart]:
    found = run.section("oscillation")
    epochs, layers = found.get("epochs"), found.get("layers")
    charts = []
    if epochs:
        charts += [
            line_chart(
                "Oscillation: weights",
                "Share of the weights that oscillate, and of those within 0.05 steps of a rounding "
                "threshold: 10 %, the dotted line, if they were spread evenly. These are the raw "
                "weights, which all methods of a training share.",
                [
                    _share("oscillating", 3, epochs, "oscillating"),
                    _share("near a threshold", 4, epochs, "near_threshold"),
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
                    _share("change their code", 3, epochs, "change_rate"),
                    _share("turn back", 4, epochs, "reversal_rate"),
                ],
                show=formatting.percent,
                zero=True,
            ),
        ]
    if layers:
        charts.append(
            range_chart(
                "Oscillation: layers",
                "Share of each layer's weights that oscillate at the end.",
                [(layer["name"], 0.0, layer["oscillating"]) for layer in layers],
                unchanged=0.0,
                header=["layer", "weights", "oscillating", *_LAYER_COLUMNS.values()],
                show=formatting.percent,
                table=[_layer_row(layer) for layer in layers],
            )
        )
    return charts


_LAYER_COLUMNS = {
    "flips": "code changes a weight",
    "reversals": "reversals a weight",
    "near_threshold": "near a threshold",
    "threshold_distance": "steps from a threshold",
    "scale_drift": "|log2| of the scale's change",
}


def _share(label: str, style: int, epochs: Sequence[Entry], name: str) -> Series:
    return Series(label, style, [(float(entry["epoch"]), entry[name]) for entry in epochs])


def _layer_row(layer: Entry) -> list[str]:
    shares = ("oscillating", "near_threshold")
    shown = [
        formatting.percent(layer[name]) if name in shares else f"{layer[name]:.3g}"
        for name in ("oscillating", *_LAYER_COLUMNS)
    ]
    return [layer["name"], f"{layer['weights']:,}", *shown]


def _batchnorm(run: LoadedRun) -> Chart | None:
    layers = run.section("batchnorm").get("layers")
    if not layers:
        return None
    return range_chart(
        "BatchNorm drift",
        "KL divergence of each layer's running statistics from re-estimated ones, from its mean "
        "over the channels to its largest; 0 is no drift.",
        [(layer["name"], layer["kl_mean"], layer["kl_max"]) for layer in layers],
        unchanged=0.0,
        header=["layer", "mean over channels", "largest"],
        show="{:.3g}".format,
    )
