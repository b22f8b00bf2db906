"""A run's ``summary.md``: whether it held, then how far it got, then how it was made.

Blocks of Markdown are texts that a blank line stands between.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from statistics import stdev

import msgspec

from qatval.analysis import autopsies, falls
from qatval.core import formatting
from qatval.core.measurements import Oscillation, TrajectoryRecord
from qatval.core.quantization import in_words, quantization_label
from qatval.core.summary import Resumption, RunSummary
from qatval.core.trajectory import of_run
from qatval.quant.methods import describe
from qatval.report.deployment import NUMERIC, run_lines, run_table

_METRIC = "mAP 50-95"
_LIBRARIES = ("python", "torch", "ultralytics", "brevitas")

# What is Markdown within a line, between words or in an address, and what begins a block.
_INLINE = re.compile(
    r"[\\`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|&(?=[#\w])"
)
_BLOCK = re.compile(r"^(?:(\d+)([.)])(?=\s|$)|([#>=]|[+-](?!\d)))")  # a number with a sign is none


def render_run(summary: RunSummary) -> str:
    """Return a run's summary as Markdown, the stability outcome first."""
    found, after = of_run(summary), summary.method.afterwards
    repaired = found and falls.repaired(found, after)
    headline, *verdict = _verdict(summary, "run" if repaired else "training")
    return document(
        f"# {headline}: {escape(summary.run_id)}",
        *verdict,
        f"**{repaired[:1].upper()}{repaired[1:]}.**" if repaired else "",
        f"Epoch by epoch: {course}." if (course := falls.remarkable(found, after)) else "",
        f"{escape(cause[:1].upper() + cause[1:])}."
        if (cause := autopsies.causes(summary.autopsies))
        else "",
        *section("Warnings", [bullets(map(escape, summary.warnings))]),
        *section("Accuracy", _accuracy(summary)),
        *section("Deployment", _deployment(summary)),
        *section("Method", _method(summary)),
        *section("Epochs", _history(summary, found)),
        *section("Oscillation of the raw weights", _oscillation(summary)),
        *section("BatchNorm drift", _batchnorm(summary)),
        *section("How it was made", _setup(summary)),
        *section("Quantized layers", _coverage(summary)),
    )


def document(*blocks: str) -> str:
    """Return blocks as a page of Markdown."""
    return "\n\n".join(filter(None, blocks)).rstrip() + "\n"


def section(title: str, blocks: Iterable[str]) -> Sequence[str]:
    """Return blocks below a heading, nothing if there is nothing in them."""
    filled = [block for block in blocks if block]
    return [f"## {title}", *filled] if filled else []


def bullets(items: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {item}" for item in items)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Container[str]) -> str:
    """Return a table; the columns named in `right` hold numbers."""
    rule = "|".join("---:" if name in right else "---" for name in header)
    cells = [" | ".join(escape(cell) for cell in row) for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {row} |" for row in cells)])


class Markdown(str):
    """A text that is Markdown already."""


def escape(text: str) -> str:
    """Keep a recorded text from becoming structure, a link or an image, on one line."""
    if isinstance(text, Markdown):
        return text
    line = _INLINE.sub(r"\\\g<0>", formatting.printable(" ".join(text.split())))
    return _BLOCK.sub(r"\1\\\2\3", line).replace("<", "&lt;")


def code(text: str) -> Markdown:
    """Return a recorded text as a span of code."""
    line = formatting.printable(" ".join(text.split()))
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line or not line else ""
    return Markdown(f"{ticks}{space}{line}{space}{ticks}")


def _verdict(summary: RunSummary, what: str) -> Iterator[str]:
    """Write what became of the run in a word, then in blocks; `what` is what held, if it did."""
    metrics, ratio = summary.metrics, summary.stability.final_over_best_ratio
    final, best = formatting.value(metrics.final_value), formatting.value(metrics.best_value)
    limit = summary.stability.collapse_threshold_ratio
    if summary.status == "incomplete":
        assert summary.error is not None
        stage = f" in stage {code(summary.error.stage)}" if summary.error.stage else ""
        yield "Incomplete"
        yield f"**The run did not finish**: it stopped{stage}. It says nothing about its method."
        yield f"> {escape(summary.error.message)}"
    elif summary.stability.collapsed:
        yield "Collapsed"
        yield (
            f"**The training collapsed**: final mAP 50-95 is {final}, less than {limit:g} of its "
            f"best, {best}."
        )
    elif summary.status == "completed-failed":
        yield "Failed"
        yield "\n".join(_failed(summary, best))
    elif summary.method.training == "none":
        yield "Stable"
        yield (
            f"**Nothing was trained**: mAP 50-95 of the quantized checkpoint is {final}"
            f"{_of_fp32(summary)}."
        )
    else:
        share = "" if ratio is None else f" ({formatting.percent(ratio)})"
        yield "Stable"
        yield (
            f"**The {what} held**: final mAP 50-95 is {final} of a best {best}{share}"
            f"{_of_fp32(summary)}; below {limit:g} of its best it would count as collapsed."
        )


def _failed(summary: RunSummary, best: str) -> Iterator[str]:
    for check in summary.failed_checks or ():
        detail = escape(check.detail)
        yield f"**The value is disputed** by the check {code(check.name)}: {detail}."
    degenerate = summary.stability.degenerate
    if not summary.failed_checks if degenerate is None else degenerate:
        yield (
            f"**The run is worth nothing**: its best mAP 50-95 is {best}{_of_fp32(summary)}; it "
            "takes 1 % of FP32, or more than 0 where that is not known."
        )


def _of_fp32(summary: RunSummary) -> str:
    """Say what share of the FP32 checkpoint's value the final one is, where it is known."""
    final, fp32 = summary.metrics.final_value, summary.metrics.fp32_value
    if final is None or not fp32:
        return ""
    poor = ", less than half" if final < 0.5 * fp32 else ""
    return f", {formatting.percent(final / fp32)} of FP32's {formatting.value(fp32)}{poor}"


def _accuracy(summary: RunSummary) -> Iterator[str]:
    metrics, fp32 = summary.metrics, summary.metrics.fp32_value
    trained = summary.method.training != "none"
    epoch = metrics.best_epoch
    best = f" ({epoch or 'the start'})" if isinstance(epoch, int) else ""
    rows = [
        ("FP32 checkpoint, same images", fp32),
        (f"untrained {summary.quantization.mode}", metrics.value("ptq_value")),
        ("start of the training", metrics.value("start_value") if trained else None),
        (f"best epoch{best}", metrics.best_value if trained else None),
        ("before QC", metrics.before_qc_value),
        ("before re-estimation", metrics.before_bn_value),
        (Markdown("**final**"), metrics.final_value),
        ("final, pycocotools' protocol", metrics.coco.map if metrics.coco else None),
    ]
    measured = [
        (name, formatting.value(value), formatting.percent(value / fp32 if fp32 else None))
        for name, value in rows
        if value is not None
    ]
    if not measured:
        return
    yield table(("model", _METRIC, "of FP32"), measured, right=(_METRIC, "of FP32"))
    if (bootstrap := metrics.bootstrap) and bootstrap.values:
        error = stdev(bootstrap.values) if len(bootstrap.values) > 1 else 0.0
        yield (
            f"Another draw of {bootstrap.images} validation images would move the final value "
            f"by about ±{formatting.value(error)} (one standard error)."
        )


def _deployment(summary: RunSummary) -> Iterator[str]:
    if not (found := run_table(summary)):
        return
    yield bullets(map(escape, run_lines(summary)))
    yield table(found.header, found.rows, right=NUMERIC)
    yield found.how


def _method(summary: RunSummary) -> Iterator[str]:
    method = summary.method
    scored = {"none": ": the quantized checkpoint, not trained", "float": ": trained in float"}
    name = f"**{escape(method.variant)}**{scored.get(method.training or '', '')}"
    yield bullets([name, *map(escape, describe(method))])


def _history(summary: RunSummary, found: TrajectoryRecord | None) -> Iterator[str]:
    if not summary.history or found is None:
        return
    rows = [(str(entry.epoch), formatting.value(entry.value)) for entry in summary.history]
    if (start := summary.metrics.value("start_value")) is not None:
        rows.insert(0, ("start", formatting.value(start)))
    bn, qc = summary.method.bn, summary.method.qc
    if (qc.enabled or (bn and bn.enabled)) and summary.status != "incomplete":
        after = f"after {summary.method.afterwards}"
        rows.append((after, formatting.value(summary.metrics.final_value)))
    yield table(("epoch", _METRIC), rows, right=("epoch", _METRIC))
    if found.falls:
        yield "Falls below half of the best value so far:"
        yield bullets(falls.fall_lines(found, summary.method.afterwards))
    if summary.autopsies:
        yield "What broke it, by repairing one thing at a time on copies of the weights:"
        yield bullets(map(escape, autopsies.lines(summary.autopsies)))


def _oscillation(summary: RunSummary) -> Iterator[str]:
    found = summary.oscillation
    if not found or not found.epochs:
        return
    last = found.epochs[-1]
    most = max(found.layers, key=lambda layer: layer.oscillating, default=None)
    where = f", most in {code(most.name)} ({formatting.percent(most.oscillating)})" if most else ""
    yield (
        f"- {formatting.percent(found.oscillating)} of the weights oscillate at the end "
        f"(frequency above {found.threshold:g}, momentum {found.momentum:g}"
        f"{_memory(found)}){where}; in a "
        f"step of the last epoch {formatting.percent(last.change_rate)} change their code, "
        f"{formatting.percent(last.reversal_rate)} against their last direction\n"
        f"- they lie {last.threshold_distance:.3f} steps from a rounding threshold (0.250 if "
        f"spread evenly), {formatting.percent(last.near_threshold)} within 0.05 (10.0 %); "
        f"scales moved by a factor of {2**last.scale_drift:.3f}"
    )


def _memory(found: Oscillation) -> str:
    """Say how long one reversal counts: in a short run oscillating means "reversed lately"."""
    if not 0 < found.threshold < found.momentum < 1:
        return ""
    steps = math.log(found.threshold / found.momentum) / math.log(1 - found.momentum)
    return f": one reversal counts for {steps:.0f} steps, the training had {found.steps}"


def _batchnorm(summary: RunSummary) -> Iterator[str]:
    found = summary.batchnorm
    if not found:
        return
    worst = sorted(found.layers, key=lambda layer: -layer.kl_mean)[:3]
    yield (
        "- running statistics against those of "
        f"{formatting.count(found.images, 'training image')}: KL divergence "
        f"{found.kl_mean:.3g} nats on average, at most {found.kl_max:.3g} in a channel of "
        f"{code(found.worst_layer)}\n- most drift: "
    ) + ", ".join(f"{code(layer.name)} {layer.kl_mean:.3g}" for layer in worst)


def _setup(summary: RunSummary) -> Iterator[str]:
    model, dataset, training, git = summary.model, summary.dataset, summary.training, summary.git
    quantization = msgspec.to_builtins(summary.quantization)
    environment = summary.environment or {}
    images = ", ".join(
        f"{'all' if number is None else number} {what} images"
        for what, number in (("training", dataset.train_images), ("validation", dataset.val_images))
    )
    place = "resident" if training.device == "cpu" else "reserved on the GPU"
    peak = training.peak_memory_mb
    changed = " with uncommitted changes" if git.dirty else ""
    spent = (summary.timings or {}).items()
    rows = {
        "variant": Markdown(
            f"{escape(model.variant)}, {model.imgsz} px, from {code(model.checkpoint)}"
        ),
        "dataset": f"{dataset.name or dataset.dataset_yaml}: {images}",
        "classes": _classes(summary),
        "quantization": f"{quantization_label(quantization)}: {in_words(quantization)}",
        "training": f"{f'profile {training.profile}, ' if training.profile else ''}"
        f"{formatting.count(training.epochs, 'epoch')}, batch {training.batch}, "
        f"seed {training.seed}, device {training.device}"
        f"{', anchored statistics' if training.batchnorm == 'anchored' else ''}",
        "memory": f"{peak} MiB at most, {place}" if isinstance(peak, int) else "",
        "commit": f"{git.commit[:12]}{changed}" if git.commit else "unknown",
        "versions": ", ".join(f"{n} {environment[n]}" for n in _LIBRARIES if environment.get(n)),
        "series": series_text(summary),
        "interruptions": escape("; ".join(map(interruption_text, summary.resumed))),
        "time": ", ".join(f"{stage} {formatting.duration(seconds)}" for stage, seconds in spent),
    }
    yield bullets(f"{label}: {escape(text)}" for label, text in rows.items() if text)


def series_text(summary: RunSummary) -> str:
    """Say which look of its planned series a run is for, nothing without a plan."""
    plan, seed = summary.series, summary.training.seed
    if plan is None:
        return ""
    margin = "no margin" if plan.margin is None else f"margin {plan.margin:g}"
    planned, looks = len(plan.seeds), len(plan.levels)
    if seed not in plan.seeds:
        return f"seed {seed} is none of the {planned} planned; {margin}"
    place = 1 + plan.seeds.index(seed)
    at = place - planned + looks  # the last look is after all seeds
    look = f"before the first of {formatting.count(looks, 'look')}"
    if at >= 1:
        look = f"look {at} of {looks} (level {formatting.level(plan.levels[at - 1])})"
    return f"{look}, seed {place} of {planned} planned; {margin}"


def interruption_text(resumed: Resumption) -> str:
    """Say where a run was interrupted, and when it went on."""
    where = f"in {resumed.stage}" if resumed.stage else "once"
    after = f" after {formatting.count(resumed.steps, 'step')}" if resumed.steps else ""
    return f"interrupted {where}{after}, goes on {resumed.at}"


def _classes(summary: RunSummary) -> str:
    """Say how the dataset's classes were found in the checkpoint, if not simply in order."""
    found, said = summary.model.classes, []
    if found and found.match == "mapped":
        said.append("mapped by name from the checkpoint's order to the dataset's")
    if found and found.match == "unknown":
        said.append("not compared: the checkpoint or the dataset has no names of classes")
    if found and found.renamed:
        pairs = [f"'{ours}' is the checkpoint's '{name}'" for ours, name in found.renamed.items()]
        said += pairs[:3] + ([f"so are {len(pairs) - 3} more"] if len(pairs) > 3 else [])
    for split, names in (summary.dataset.unlabelled or {}).items():
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            said.append(f"{len(names)} without annotation in {split} ({shown})")
    return "; ".join(said)


def _coverage(summary: RunSummary) -> Iterator[str]:
    coverage = summary.quantization.coverage
    if coverage is None:
        return
    levels = coverage.max_levels_per_scale
    at_most = f", at most {levels} levels per scale" if isinstance(levels, int) else ""
    yield f"{coverage.quantized} quantized{at_most}; {coverage.exempt} in float:"
    yield bullets(
        f"{code(it.name)}: {escape(it.reason or '')}" for it in coverage.layers if it.bits is None
    )
