"""`qatval sensitivity`: which layer of a finished run's model loses what by its rounding."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from qatval.analysis.intervals import ALPHA
from qatval.cli.options import add_shared
from qatval.core import formatting
from qatval.core.errors import QatvalError
from qatval.core.option_types import positive
from qatval.core.progress import Progress

if TYPE_CHECKING:
    from qatval.run.sensitivity import Gain, PartGain, Sensitivity


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval sensitivity` to the command line."""
    parser = subparsers.add_parser(
        "sensitivity",
        help="say which layer of a finished run's model hurts",
        description="Score the delivered model of a finished run again with one layer after the "
        "other in float (or a block, or a branch of the head) and all else as delivered, on the "
        "run's validation images, and list them by what that gains.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_ROOT", help="run root of a finished run")
    parser.add_argument(
        "--by",
        choices=("layer", "block", "head"),
        default="layer",
        help="what is in float at a time: a layer, a block of the model, or a branch of the head "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=positive,
        metavar="N",
        help="score the first N of the run's validation images (default: all)",
    )
    parser.add_argument(
        "--coco-root",
        type=Path,
        metavar="DIR",
        help="where the run's data are (default: where they were)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="FP32 checkpoint that a ptq run rounded (default: where it was)",
    )
    parser.add_argument(
        "--device", default="cpu", metavar="D", help="cpu or 0 (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON too")
    add_shared(parser, "--cache-dir")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Print the table, after writing it where that was asked for."""
    import msgspec

    from qatval.core.files import atomic_write, to_json, why_unwritable
    from qatval.run.sensitivity import sensitivity

    if args.out is not None and (why := why_unwritable(args.out.parent)):
        raise QatvalError(f"cannot write {args.out}: {why}; give another --out")
    with Progress("sensitivity") as progress:
        found = sensitivity(
            args.run,
            by=args.by,
            coco_root=args.coco_root,
            checkpoint=args.checkpoint,
            images=args.images,
            device=args.device,
            cache_dir=args.cache_dir,
            progress=progress,
        )
    if args.out is not None:
        atomic_write(args.out, to_json(msgspec.to_builtins(found)))
    print("\n".join(_table(found)))
    return 0


def _table(found: Sensitivity) -> Iterator[str]:
    """Yield the lines of the table and what is to be known to read it."""
    from qatval.report.terminal import WIDTH

    some = "" if found.images == found.of_images else f" of {found.of_images}"
    yield formatting.terminal_line(
        f"{found.variant} {found.method} {found.mode}: mAP 50-95 on {found.images}{some} "
        "validation images"
    )
    rows = [["in float", "bits", "weights", "share", "mAP", "points", "± se", ""]]
    error = f"{100 * found.delivered_error:.2f}"
    rows.append(["nothing, as delivered", "", "", "", _value(found.delivered), "", error, ""])
    rows.append(["everything", "", "", "", *_gained(found.all_in_float), ""])
    for part in found.parts:
        size = [_bits(part), f"{part.weights:,}", formatting.percent(part.share)]
        rows.append([part.name, *size, *_gained(part), "*" if part.p_value <= ALPHA else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield f"  {name.ljust(widths[0])}  {'  '.join(numbers)}".rstrip()
    for note in _notes(found):
        yield from wrap(note, WIDTH)


def _notes(found: Sensitivity) -> Iterator[str]:
    parts = len(found.parts)
    told = sum(part.p_value <= ALPHA for part in found.parts)
    yield (
        "points: of mAP times 100, gained over the delivered model. ± se: the standard error of "
        "the gain (of the delivered model's own score) over the choice of validation images; it "
        "says nothing of another training."
    )
    which = f"{told} of them, marked *, can" if told else "none of them can"
    yield (
        f"{formatting.count(parts, 'gain')} tested together (Holm, 5 %): {which} be told from no "
        "gain at all. What leads the list was chosen for its gain, which is therefore "
        "overstated; and gains do not add up."
    )
    if found.statistics == "moved":
        yield (
            "BatchNorm statistics fit the rounded weights; what is in float moved them, measured "
            f"on {formatting.count(found.calibration_images, 'training image')}."
        )
    if found.all_in_float.gain < 0:
        yield (
            "Everything in float scores less than what was delivered: the training, or what came "
            "after it, has made up for the rounding. So a loss in float does not mean that a "
            "layer would be better off with fewer bits."
        )
    if found.idle:
        yield (
            f"{formatting.count(len(found.idle), 'layer')} of a head that only learns by are left "
            "out: they take no part in an answer."
        )


def _gained(gain: Gain) -> list[str]:
    return [_value(gain.value), f"{100 * gain.gain:+.2f}", f"{100 * gain.standard_error:.2f}"]


def _value(value: float) -> str:
    return f"{value:.4f}"


def _bits(part: PartGain) -> str:
    """Write the bits of weights, and of inputs where they are quantized, e.g. ``w4a8``."""
    said = "w" + "/".join(map(str, part.weight_bits))
    return said + ("a" + "/".join(map(str, part.activation_bits)) if part.activation_bits else "")
