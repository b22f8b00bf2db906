"""`qatval export`: the file that a runtime takes, from what a finished run delivered."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from qatval.core.deployment import WeightStorage
from qatval.core.errors import QatvalError
from qatval.core.files import why_unwritable
from qatval.core.formatting import count, percent, terminal_line
from qatval.core.option_types import positive

if TYPE_CHECKING:
    from qatval.deploy.card import Card
    from qatval.deploy.export.onnx_file import Written

_MOST_PIXELS, _MOST_IMAGES = 4096, 256
_FILE_FORMAT = (
    "On today's runtimes int4 convolutions are a file format and not an execution mode: weights "
    "are unpacked to float32, whose memory and time they take."
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval export` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write what a run delivered as an ONNX file",
        description="Write the weights that a finished run delivered as an ONNX file: integer "
        "codes as they are, BatchNorm in their scales, what to feed and what comes out in its "
        "metadata. Before it is written, codes and answer are held to the run's. Needs "
        "pip install 'qatval[export]'.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="root of a finished run")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="where to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--format", choices=("onnx",), default="onnx", help="of the file (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        choices=get_args(WeightStorage),
        default="int4",
        help="how quantized weights lie in it: int4 where they have up to 4 bits, int8, or float "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--imgsz",
        type=positive,
        metavar="N",
        help="side of the input in pixels (default: the run's)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        default=1,
        help="images of one call, or 'dynamic' for any number (default: %(default)s)",
    )
    parser.set_defaults(handler=export)


def export(args: argparse.Namespace) -> int:
    """Write the file and print what became of it."""
    out: Path = args.out
    if os.path.lexists(out) and not (args.overwrite and out.is_file()):
        remedy = "give another --out" if not out.is_file() else "give another --out or --overwrite"
        raise QatvalError(f"{out} exists already; {remedy}")
    if why := why_unwritable(out.parent):
        raise QatvalError(f"--out: cannot write to {out.parent} ({why}); give another folder")
    if args.imgsz is not None and args.imgsz > _MOST_PIXELS:
        raise QatvalError(f"--imgsz: expected up to {_MOST_PIXELS} pixels, got {args.imgsz}")

    from qatval.deploy.export.delivered import delivered

    source = delivered(args.run)

    from qatval.deploy.export.description import card_of
    from qatval.deploy.export.onnx_file import export_onnx, require_exporter
    from qatval.train.models import load_checkpoint

    require_exporter()
    model = load_checkpoint(source.weights)
    card = card_of(
        source.summary,
        model,
        weights_sha256=source.weights_sha256,
        summary_sha256=source.summary_sha256,
        storage=args.weights,
        imgsz=args.imgsz,
        batch=args.batch,
    )
    written = export_onnx(model, card, out)
    for line in report(out, written, card):
        print(terminal_line(line))
    return 0


def report(out: Path, written: Written, card: Card) -> Iterator[str]:
    """Yield what is said of a file that was written, a line each."""
    share = percent(written.bytes / written.float_bytes)
    yield (
        f"{out}: {written.bytes / 1e6:.2f} MB, {share} of {written.float_bytes / 1e6:.2f} MB in "
        "float32"
    )
    for bits, layers in card.weight_bits.items():
        yield f"weights: {count(layers, 'layer')} with {bits} bits, stored as {_stored(card, bits)}"
    for bits, layers in card.activation_bits.items():
        yield f"inputs: {count(layers, 'layer')} with {bits} bits"
    if not card.weight_bits:
        yield "weights: all layers in float32, nothing is quantized"
    side = int(card.input.imgsz)
    batch = (
        "any number of images"
        if card.input.batch is None
        else count(int(card.input.batch), "image")
    )
    yield f"input: {batch} of {side} x {side} pixels; the metadata say how they are made"
    yield "checked: codes are the run's; a seeded input gives what torch gives, in ONNX Runtime"
    if card.weight_bits and card.storage == "int4":
        yield _FILE_FORMAT


def _stored(card: Card, bits: str) -> str:
    if card.storage != "int4" or int(bits) > 4:
        return "float32" if card.storage == "float" else "int8"
    return "int4" if bits == "4" else "int4, the smallest type that ONNX Runtime takes"


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    value = positive(text)
    if value > _MOST_IMAGES:
        raise argparse.ArgumentTypeError(f"expected up to {_MOST_IMAGES} or 'dynamic', got {text}")
    return value
