"""`qatval score`: does an exported file detect as well as the run says, in a runtime of its own."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from qatval.cli.options import add_shared
from qatval.core.deployment import RuntimeName
from qatval.core.option_types import positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qatval.core.deployment import RuntimeRecord
    from qatval.data.coco import CocoFiles, Detection
    from qatval.data.validation import ValidationSet
    from qatval.deploy.card import Card

_MOST_DETECTIONS_BYTES = 2**28  # 300 of each of COCO's 5,000 validation images take 128 MiB

_log = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval score` to the command line."""
    parser = subparsers.add_parser(
        "score",
        help="score an exported file in the runtime that will run it",
        description="Score a file that 'qatval export' wrote, on the validation images that the "
        "run was scored on, and measure it: mAP by both protocols, latency, memory, and in which "
        "precision the runtime computes. Neither torch nor Ultralytics is loaded. Exit code 0: "
        "done. 1: it could not be done, or on the run's own data the file scores otherwise than "
        "the run says, by more than 0.001 (with quantized activations that is said and no error).",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what 'qatval export' wrote")
    add_shared(parser, "--coco-root")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="a COCO annotation file to score on, in place of --coco-root; with --images",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="where its images are")
    parser.add_argument(
        "--val-images",
        type=positive,
        metavar="N",
        help="how many, of the smallest ids (default: as many as the run asked for)",
    )
    parser.add_argument(
        "--runtime",
        choices=get_args(RuntimeName),
        default="onnxruntime",
        help="what runs the file, on the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        default=1,
        help="that it computes with (default: %(default)s)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="detections on the same images to compare with, in COCO's result format, e.g. a run's "
        "predictions.json",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what was measured as JSON")
    parser.add_argument(
        "--detections", type=Path, metavar="FILE", help="write all detections as JSON"
    )
    parser.set_defaults(handler=score)


def score(args: argparse.Namespace) -> int:
    """Score, measure and print; say whether the run's value stands."""
    import msgspec

    from qatval.core.deployment import RuntimeRecord
    from qatval.core.errors import QatvalError
    from qatval.core.files import atomic_write
    from qatval.core.formatting import signed, terminal_line
    from qatval.data.coco_protocol import TOLERANCE
    from qatval.data.validation import validation_set
    from qatval.deploy import scoring
    from qatval.deploy.agreement import agreement
    from qatval.deploy.measuring import latency, resident_mb
    from qatval.deploy.runtimes import open_runtime

    _refuse_unwritable(args)
    files = _files(args)
    theirs = None if args.against is None else _read_detections(args.against)
    runtime = open_runtime(args.runtime, args.file, threads=args.threads)
    card = runtime.card
    count = args.val_images or card.origin.val_images
    validation = validation_set(files, count, card.class_names)
    if theirs:
        scored_ids = set(validation.index.image_ids.tolist())
        theirs = [found for found in theirs if found["image_id"] in scored_ids]
        if not theirs:
            raise QatvalError(
                f"{args.against}: has no detection on the {len(scored_ids)} images that are "
                "scored; give detections on the same images"
            )
    scored = scoring.score(runtime, validation)
    if abs(scored.matched_map - scored.interpolated) > TOLERANCE:
        _log.warning(
            "pycocotools finds %.4f where Ultralytics' protocol finds %.4f of the same detections: "
            "do not rely on either",
            scored.matched_map,
            scored.interpolated,
        )
    record = RuntimeRecord(
        name=runtime.name,
        version=runtime.version,
        value=scored.value,
        coco_map=scored.coco_map,
        agreement=None if theirs is None else agreement(scored.detections, theirs, card.output),
        latency=latency(runtime),
        resident_mb=resident_mb(args.runtime, args.file, threads=args.threads),
        executed=runtime.executed(),
    )
    own = args.annotations is None and validation.are_those_of(card.origin.dataset)
    for line in _told(args.file, card, record, validation, own=own):
        print(terminal_line(line))
    if args.out is not None:
        atomic_write(args.out, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    if args.detections is not None:
        atomic_write(args.detections, msgspec.json.encode(scored.detections))
    value = card.origin.value
    if own and value is not None and abs(scored.value - value) > scoring.PARITY:
        difference = signed(scored.value - value)
        if card.activation_bits:
            print(
                f"--  {difference} from what the run says: activations are quantized, and every "
                "runtime rounds them anew"
            )
            return 0
        print(
            f"NO  the file does not score what the run says: {difference}, more than "
            f"{scoring.PARITY:g} apart; export the run again, or try another --runtime"
        )
        return 1
    return 0


def _files(args: argparse.Namespace) -> CocoFiles:
    from qatval.core.errors import QatvalError, UsageError
    from qatval.data.coco import CocoFiles

    if (args.annotations is None) != (args.images is None):
        raise UsageError("--annotations and --images are of one dataset: give both or neither")
    if args.annotations is not None:
        return CocoFiles(args.annotations, args.images)
    files = CocoFiles.of(args.coco_root, "val")
    if not files.annotations.is_file():
        raise QatvalError(
            f"{files.annotations}: no such annotation file; --coco-root must hold annotations/ and "
            "val2017/ as COCO 2017 unpacks, or name files with --annotations and --images"
        )
    return files


def _refuse_unwritable(args: argparse.Namespace) -> None:
    """Refuse files that cannot be written before minutes are spent on what belongs in them."""
    from qatval.core.errors import QatvalError, UsageError
    from qatval.core.files import why_unwritable

    read = {path.resolve() for path in (args.file, args.against, args.annotations) if path}
    for path in filter(None, (args.out, args.detections)):
        if path.resolve() in read or path.is_dir():
            raise UsageError(f"{path} cannot be written over: name a new file")
        if reason := why_unwritable(path.parent):
            raise QatvalError(f"cannot write {path}: {reason}; name a file in another folder")


def _read_detections(path: Path) -> list[Detection]:
    import msgspec

    from qatval.core.errors import QatvalError
    from qatval.core.files import read_regular
    from qatval.data.coco import Detection

    content = read_regular(path, _MOST_DETECTIONS_BYTES, expected="detections")
    try:
        return msgspec.json.decode(content, type=list[Detection])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise QatvalError(
            f"{path}: holds no detections ({error}); expected COCO's result format"
        ) from error


def _told(
    file: Path, card: Card, record: RuntimeRecord, validation: ValidationSet, *, own: bool
) -> Sequence[str]:
    from qatval.core.formatting import MISSING, count, signed, value

    size, took, origin = file.stat().st_size, record.latency, card.origin
    data = "the run's" if own else "not known to be the run's"
    # Of other images the run's value says nothing.
    compared = ""
    if own and origin.value is not None:
        compared = f", the run's {value(origin.value)}: {signed(record.value - origin.value)}"
    executed = ", ".join(f"{number} in {name}" for name, number in record.executed.items())
    memory = MISSING if record.resident_mb is None else f"{record.resident_mb} MiB at most"
    lines = {
        "file": f"{file}, {size / 1e6:.2f} MB, weights {card.storage}, {card.input.imgsz} px",
        "run": f"{origin.run_id}, method {origin.method}",
        "images": f"{len(validation.index.image_ids)}, {data}",
        "mAP 50-95": f"{value(record.value)}{compared}",
        "COCO's mAP": value(record.coco_map),
        "runtime": f"{record.name} {record.version}, {count(took.threads, 'thread')}",
        "latency": f"{took.median_ms:.1f} ms an image, quartiles {took.low_ms:.1f} and "
        f"{took.high_ms:.1f}, {took.calls} calls",
        "memory": memory,
        "convolutions": executed,
    }
    if (found := record.agreement) is not None:
        lines["agreement"] = (
            f"{found.detections} detections, {found.unmatched} without a counterpart, boxes within "
            f"{found.box:.3g} px, scores within {found.score:.2g}"
        )
    told = [f"{name:<13} {said}" for name, said in lines.items()]
    if card.storage != "float":
        told.append(
            f"{card.storage} weights are how the file is stored, not how it is computed: time and "
            "memory are those of the precision named under convolutions"
        )
    return told
