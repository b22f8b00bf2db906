"""`qatval predict`: what a run's model, or an exported file, sees in the user's own pictures."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from qatval.core.deployment import RuntimeName
from qatval.core.option_types import positive

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qatval.deploy.card import Card
    from qatval.deploy.pictures import Answer, Seen

PREDICTIONS = "predictions.json"
# What Ultralytics takes from a folder and can be decoded here.
_SUFFIXES = {".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_LONGEST_STEM = 200  # bytes; a name has 255 at most, and a file that is being written a longer one


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval predict` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="draw what a run's model or an exported file sees in your pictures",
        description="Detect objects in pictures and draw boxes, names and scores on copies of "
        f"them. Beside the copies {PREDICTIONS} says the same in numbers. Exit code 0: done. 1: "
        "some pictures could not be read, which are named, or nothing could be done.",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="FILE_OR_RUN",
        help="what 'qatval export' wrote, or the root of a finished run",
    )
    parser.add_argument(
        "pictures", nargs="+", type=Path, metavar="IMAGE", help="a picture, or a folder of them"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("predictions"),
        help="where the copies are written: a new folder, or one of an earlier call (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--conf",
        type=_confidence,
        metavar="C",
        default=0.25,
        help="the lowest score that is drawn, in [0, 1) (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime",
        choices=get_args(RuntimeName),
        help="what runs a file (default: onnxruntime); a run is run by torch",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="that it computes with (default: one per core)",
    )
    parser.set_defaults(handler=predict)


def predict(args: argparse.Namespace) -> int:
    """Write a copy of each picture and print a line for it."""
    import msgspec

    from qatval.core.errors import QatvalError
    from qatval.core.files import atomic_write, encoded
    from qatval.core.formatting import terminal_line
    from qatval.data.decoding import quiet_decoder
    from qatval.deploy.pictures import drawn, seen_in

    pictures = list(_pictures(args.pictures))
    _refuse_other_folder(args.out, pictures)
    answer, card = _model(args)
    output = msgspec.structs.replace(card.output, confidence=args.conf)
    card = msgspec.structs.replace(card, output=output)
    predictions, unreadable, names = [], 0, set[str]()
    try:
        for picture in pictures:
            try:
                with quiet_decoder():
                    image = _decoded(picture)
                seen = seen_in(image, answer, card)
                place = args.out / _free_name(picture.stem, names)
                atomic_write(place, drawn(image, seen))
            except (_UnreadableError, OSError) as error:
                unreadable += 1
                print(terminal_line(f"NO  {picture}: {error}"))
                continue
            print(terminal_line(f"ok  {picture}: {_counted(seen)} -> {place}"))
            predictions.append(
                {
                    "image": encoded(str(picture)).decode(),
                    "drawn": place.name,
                    "height": image.shape[0],
                    "width": image.shape[1],
                    "detections": [
                        {"class": s.class_name, "score": s.score, "box": s.box} for s in seen
                    ],
                }
            )
    finally:
        # After an interruption too: without it the next call would take the folder for another's.
        if predictions:
            numbers = msgspec.json.format(msgspec.json.encode(predictions))
            atomic_write(args.out / PREDICTIONS, numbers)
    if not predictions:
        raise QatvalError(f"no picture of {len(pictures)} could be read")
    return 1 if unreadable else 0


class _UnreadableError(Exception):
    """Why a picture cannot be looked at."""


def _pictures(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the pictures that are named, and those in folders that are, each once."""
    from qatval.core.errors import QatvalError

    seen = set()
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(
                p
                for p in path.iterdir()
                if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and not p.is_dir()
            )
            if not found:
                raise QatvalError(
                    f"{path}: no picture is in this folder; expected files that end in "
                    f"{', '.join(sorted(_SUFFIXES))}"
                )
        for picture in found:
            if (place := os.path.realpath(picture)) not in seen:
                seen.add(place)
                yield picture


def _refuse_other_folder(out: Path, pictures: Sequence[Path]) -> None:
    """Refuse to write where something of the user's could be overwritten."""
    from qatval.core.errors import QatvalError
    from qatval.core.files import why_unwritable

    if reason := why_unwritable(out):
        raise QatvalError(f"cannot write to {out}: {reason}; name another folder with --out")
    if out.exists() and any(out.iterdir()) and not (out / PREDICTIONS).is_file():
        raise QatvalError(
            f"{out} holds other files, which could be overwritten: name a new folder with --out"
        )
    whole = os.path.realpath(out)
    for picture in pictures:
        # Of links that lead to each other Path.resolve() raises an error of its own.
        if whole == os.path.dirname(os.path.realpath(picture)):  # noqa: PTH120
            raise QatvalError(
                f"{picture} lies in {out}, where it could be overwritten: name another folder "
                "with --out"
            )


def _model(args: argparse.Namespace) -> tuple[Answer, Card]:
    """Return what answers, and what is known of it."""
    from qatval.core.environment import available_cores
    from qatval.core.errors import UsageError
    from qatval.deploy.runtimes import open_runtime

    threads = args.threads or available_cores()
    if not args.model.is_dir():
        runtime = open_runtime(args.runtime or "onnxruntime", args.model, threads=threads)
        return runtime.run, runtime.card
    if args.runtime:
        raise UsageError(
            f"{args.model} is a run, which torch runs: leave --runtime out, or export the run "
            "with 'qatval export' and give the file"
        )
    return _run_by_torch(args.model, threads)


def _run_by_torch(run: Path, threads: int) -> tuple[Answer, Card]:
    import torch

    from qatval.deploy.export.delivered import delivered
    from qatval.deploy.export.description import card_of
    from qatval.train.models import load_checkpoint

    found = delivered(run)
    torch.set_num_threads(threads)
    model = load_checkpoint(found.weights)
    card = card_of(found.summary, model, weights_sha256=found.weights_sha256, batch=None)

    @torch.inference_mode()
    def answer(images: Any) -> Any:
        return model(torch.from_numpy(images))[0].numpy()

    return answer, card


def _decoded(picture: Path) -> Any:
    from qatval.core.environment import MOST_PIXELS
    from qatval.core.errors import QatvalError
    from qatval.core.files import read_regular
    from qatval.data.decoding import MOST_BYTES, TooLargeError, decoded_image

    try:
        content = read_regular(picture, MOST_BYTES, expected="a picture")
        image = decoded_image(content, picture.name)
    except TooLargeError as error:
        raise _UnreadableError(f"has {error}; at most {MOST_PIXELS:,} px are decoded") from error
    except QatvalError as error:
        raise _UnreadableError(str(error).removeprefix(f"{picture}: ")) from error
    if image is None:
        raise _UnreadableError("is no picture that can be decoded, or is damaged")
    return image


def _free_name(stem: str, taken: set[str]) -> str:
    """Return a name that no earlier picture has; on some systems a.jpg and A.jpg are one file.

    Any system takes it, which may be another one than made the picture's name.
    """
    stem = stem.encode("utf-8", "replace")[:_LONGEST_STEM].decode("utf-8", "ignore")
    name, number = f"{stem}.jpg", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}.jpg"
    taken.add(name.lower())
    return name


def _counted(seen: Sequence[Seen]) -> str:
    found = Counter(detection.class_name for detection in seen)
    return ", ".join(f"{number} {name}" for name, number in found.most_common()) or "nothing"


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a score of at least 0, below 1, got '{text}'")
    return value
