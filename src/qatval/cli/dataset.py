"""`qatval dataset`: draw the embedded dataset, build or find a subset."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval dataset` to the command line."""
    parser = subparsers.add_parser("dataset", help="draw the embedded dataset, build a subset")
    actions = parser.add_subparsers(dest="action", required=True)

    shapes = actions.add_parser(
        "shapes",
        help="draw the embedded dataset in COCO 2017's layout",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    shapes.add_argument("--out", type=Path, metavar="DIR", required=True, help="becomes COCO root")
    shapes.add_argument("--seed", type=_count, metavar="N", default=0, help="of every image")
    shapes.add_argument("--size", type=_side, metavar="PX", default=128, help="long side of images")
    shapes.add_argument("--train-images", type=_count, metavar="N", default=512, help="to draw")
    shapes.add_argument("--val-images", type=_count, metavar="N", default=128, help="to draw")
    shapes.set_defaults(handler=draw_shapes)


def draw_shapes(args: argparse.Namespace) -> int:
    """Draw the embedded dataset and print where it is."""
    from qatval.data.shapes import draw_dataset

    draw_dataset(
        args.out,
        seed=args.seed,
        train_images=args.train_images,
        val_images=args.val_images,
        size=args.size,
    )
    print(args.out)
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text}")
    return value


def _side(text: str) -> int:
    value = int(text)
    if not 32 <= value <= 4096:
        raise argparse.ArgumentTypeError(f"expected 32 to 4096 px, got {text}")
    return value
