"""``qatval run``: one training, scored with one or several methods."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qatval.cli.options import add_shared
from qatval.core import presets as config
from qatval.core.errors import UsageError
from qatval.core.formatting import terminal_line
from qatval.core.option_types import (
    activation_bits,
    bits,
    contrast,
    margin,
    positive,
    seed,
    seeds,
)
from qatval.core.progress import Progress
from qatval.core.quantization import Quantization, Start
from qatval.quant import methods

if TYPE_CHECKING:
    from qatval.analysis.stopping import Standing
    from qatval.core.summary import RunSummary
    from qatval.run.configuration import RunConfig


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "run",
        help="fine-tune a checkpoint with quantized weights and say whether it collapsed",
        description="Fine-tune a pretrained detector with fake-quantized weights (4 bits: W4A16), "
        "evaluate it and write run_summary.json. Methods asked for together get a run root each "
        "below --run-root; those that differ only beside or after the gradient steps share one "
        "training. An interrupted run goes on when the same command is given again.",
        epilog="Exit codes: 0 done, 1 could not be done, 2 wrong usage, 75 ended by SIGTERM, "
        "SIGHUP or SIGINT (a scheduler may start it again). A second signal ends it at once.",
    )
    parser.add_argument(
        "--variant", required=True, metavar="V", help=", ".join(config.variant_names())
    )
    parser.add_argument(
        "--method",
        required=True,
        metavar="M[,M]",
        help=f"{', '.join(methods.method_names())}, or other parts joined with + "
        f"({', '.join(methods.part_names())}); several with commas"
        + "".join(f"; {line}" for line in methods.packages_left_out()).replace("%", "%%"),
    )
    parser.add_argument(
        "--with-controls",
        action="store_true",
        help="add what the methods' effects are to be compared with: the untrained model, the same "
        "training in FP32, averaged and corrected alike, re-estimated BatchNorm statistics in the "
        "place of QC",
    )
    parser.add_argument(
        "--primary",
        type=contrast,
        default=methods.primary_contrast(),
        metavar="M:REF",
        help="the claim that these runs are made for, declared before they start: comparisons test "
        "the difference of these two methods by itself and correct all others for their number "
        f"(default: {':'.join(methods.primary_contrast())})",
    )
    parser.add_argument(
        "--profile", required=True, metavar="P", help=", ".join(config.profile_names())
    )
    parser.add_argument(
        "--run-root", required=True, type=Path, metavar="DIR", help="folder of the run"
    )
    add_shared(parser, "--coco-root")
    precision = parser.add_argument_group("precision", argument_default=argparse.SUPPRESS)
    precision.add_argument(
        "--quantization",
        default="w4a16",
        metavar="Q",
        help=f"preset: {', '.join(config.quantization_names())} (default: %(default)s)",
    )
    precision.add_argument(
        "--weight-bits",
        dest="weight_bit_width",
        type=bits,
        metavar="N",
        help="2 to 8 (default: the preset's)",
    )
    precision.add_argument(
        "--activation-bits",
        dest="activation_bit_width",
        type=activation_bits,
        metavar="N",
        help="2 to 8, or 16 for float (default: the preset's)",
    )
    precision.add_argument(
        "--boundary-bits",
        dest="boundary_bit_width",
        type=bits,
        metavar="N",
        help="of the first and last convolutions, 2 to 8 (default: the preset's)",
    )
    precision.add_argument(
        "--scale",
        choices=("per-tensor", "per-channel"),
        help="granularity of the weight scales (default: the preset's)",
    )
    precision.add_argument(
        "--scaling",
        choices=("learned", "statistics"),
        help="weight scales as parameters (LSQ), or from max|w| (default: the preset's)",
    )
    precision.add_argument(
        "--start-scale",
        choices=("max", "mse", "lsq"),
        help="where learned weight scales start: max|w|, least squared error, LSQ's "
        "2 mean|w| / sqrt(largest code) (default: the preset's)",
    )
    precision.add_argument(
        "--start-statistics",
        choices=("kept", "reestimated", "shifted"),
        help="BatchNorm statistics at the first step: the checkpoint's, those of the calibration "
        "images, or the checkpoint's moved by what quantization changes on those images (default: "
        "the preset's)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="FP32 checkpoint to fine-tune, .pt or .safetensors (default: the variant's)",
    )
    parser.add_argument(
        "--imgsz",
        type=positive,
        metavar="PX",
        help="side of the images, a multiple of 32 (default: the profile's)",
    )
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="of the training (default: the profile's)"
    )
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="images in a step (default: the profile's)"
    )
    parser.add_argument(
        "--batchnorm",
        choices=("running", "anchored"),
        help="statistics that a training is scored and ends with: running averages over its "
        "batches, or the FP32 checkpoint's moved by what sets the trained model apart from it "
        "(default: the profile's)",
    )
    parser.add_argument(
        "--device", metavar="D", help="0, 0,1 or cpu (default: 0 if there is a GPU, else cpu)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=8,
        metavar="N",
        help="data-loading processes on a GPU (default: 8; on the CPU always 0)",
    )
    one_or_more = parser.add_mutually_exclusive_group()
    one_or_more.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of the training subset and the training (default: 0)",
    )
    one_or_more.add_argument(
        "--seeds",
        type=seeds,
        metavar="N..N",
        help="run one seed after another, 0..9 or 0,1,2, each in a folder of its own below "
        "--run-root",
    )
    parser.add_argument(
        "--until-told",
        action="store_true",
        help="look at the primary contrast after every one of --seeds from the third on, and stop "
        "when it is told apart; the levels of the looks are such that all of them together are "
        "wrong in 5 %% at most",
    )
    parser.add_argument(
        "--margin",
        type=margin,
        metavar="M",
        help="with --until-told, stop as well when the method of the primary contrast is shown to "
        "be no worse than its reference by this difference of mAP, e.g. 0.005",
    )
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mixed precision in training, on a GPU (default: on)",
    )
    parser.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fake-quantize all weights at once in training, or layer by layer through Brevitas; "
        "the results are the same (default: on)",
    )
    parser.add_argument(
        "--track",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure how the weights oscillate; the results are the same (default: on)",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="write an ONNX file of what is delivered, of 4-bit weights as INT4, and record what "
        "it scores, takes and needs in ONNX Runtime (and in OpenVINO if that is installed) beside "
        "the FP32 checkpoint's",
    )
    parser.add_argument(
        "--image-list",
        type=Path,
        metavar="FILE",
        help="image ids or file names, one a line, instead of the profile's selection",
    )
    add_shared(parser, "--cache-dir")
    parser.add_argument(
        "--gate-root", type=Path, metavar="DIR", help="runs that open the gate of yolo10m"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a finished run in the run root, which stays until the new one is finished",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="begin an interrupted run in the run root anew instead of going on with it",
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run, and print the outcome of each method."""
    from qatval.run import runner
    from qatval.run.configuration import configure

    given = vars(args)
    del given["handler"]
    names, controlled = given.pop("method").split(","), given.pop("with_controls")
    in_turn, how = given.pop("seeds"), {name: given.pop(name) for name in ("until_told", "margin")}
    precision = {f.name: given.pop(f.name) for f in fields(Quantization) if f.name in given}
    precision["start"] = {
        f.name: given.pop(f"start_{f.name}") for f in fields(Start) if f"start_{f.name}" in given
    }
    settled = configure(
        methods=methods.with_controls(names) if controlled else names, precision=precision, **given
    )
    if in_turn is not None:
        return _run_series(settled, in_turn, **how)
    if how["until_told"] or how["margin"] is not None:
        raise UsageError(
            "--until-told and --margin are for a series: give its seeds, e.g. --seeds 0..9"
        )
    title = f"{settled.variant.name} {settled.profile.name} seed {settled.seed}"
    with Progress(title) as progress:
        summaries = runner.run(settled, progress)
    _print_outcomes(summaries)
    _print_warnings(summaries)
    return 0


def _run_series(settled: RunConfig, in_turn: Sequence[int], **how: Any) -> int:
    """Run a series, print what it has after each seed, and at the end why that was the last."""
    from qatval.run import series

    asked = series.series(settled, in_turn, **how)
    summaries: list[RunSummary] = []
    done = None
    for done in series.run(asked):
        summaries += done.summaries
        print(f"seed {done.seed} ({done.number} of {len(asked.seeds)}):")
        _print_outcomes(done.summaries)
        if done.standing is not None:
            print(terminal_line(_look(done.standing)))
            sys.stdout.flush()
    if done is not None and done.standing is not None:
        for line in _decision(done.standing, done.number, len(asked.seeds), settled.primary):
            print(terminal_line(line))
    _print_warnings(summaries)
    return 0


def _look(standing: Standing) -> str:
    """Say in short what a look shows."""
    from qatval.analysis.words import look
    from qatval.core.formatting import p_value

    corrected = standing.corrected
    if corrected is None or corrected.look is None:
        return "nothing to compare yet: a method collapsed, or was not completed"
    said = f"{look(corrected.look, corrected.level)}: corrected {p_value(corrected.p_value)}"
    return f"{said}, {standing.told or 'not told'}"


def _decision(
    standing: Standing, number: int, planned: int, primary: tuple[str, str]
) -> Iterator[str]:
    """Yield why a series has stopped, and what it tells."""
    said = standing.told or f"{primary[0]} is not told from {primary[1]}, which stays open"
    last = "" if standing.told else ", all that were planned"
    yield f"stopped after {number} of {planned} seeds{last}: {said}"
    yield from standing.sentences


def _print_outcomes(summaries: Iterable[RunSummary]) -> None:
    """Print what became of each method, a line each."""
    from qatval.core.formatting import percent, value

    for summary in summaries:
        final, fp32 = summary.metrics.final_value, summary.metrics.fp32_value
        verdict = "collapsed" if summary.stability.collapsed else "did not collapse"
        if summary.stability.degenerate:
            verdict = "is worth nothing"
        if summary.failed_checks:
            names = ", ".join(check.name for check in summary.failed_checks)
            verdict += f", disputed by a check ({names})"
        kept = percent(final / fp32 if final is not None and fp32 else None)
        print(
            f"{summary.method.variant}: {summary.status}, {verdict}, mAP50-95 {value(final)} "
            f"({kept} of FP32, best {value(summary.metrics.best_value)})  "
            f"{summary.artifacts.run_root}/run_summary.json"
        )
    sys.stdout.flush()


def _print_warnings(summaries: Iterable[RunSummary]) -> None:
    """Print what runs were warned of, each warning once."""
    for warning in dict.fromkeys(said for summary in summaries for said in summary.warnings):
        print(terminal_line(f"qatval: warning: {warning}"), file=sys.stderr)
