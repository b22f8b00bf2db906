"""`qatval dataset`: draw the embedded dataset, build or find a subset."""

from __future__ import annotations

import argparse
from pathlib import Path

from qatval.cli.options import add_shared
from qatval.core.option_types import positive, seed
from qatval.core.presets import profile, profile_names


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
    shapes.add_argument("--seed", type=seed, metavar="N", default=0, help="of every image")
    shapes.add_argument("--size", type=_side, metavar="PX", default=128, help="long side of images")
    shapes.add_argument("--train-images", type=positive, metavar="N", default=512, help="to draw")
    shapes.add_argument("--val-images", type=positive, metavar="N", default=128, help="to draw")
    shapes.set_defaults(handler=draw_shapes)

    build = actions.add_parser("build", help="build a subset, or find it, and print where it is")
    build.add_argument(
        "--profile", metavar="P", required=True, help=f"one of {', '.join(profile_names())}"
    )
    add_shared(build, "--coco-root")
    build.add_argument(
        "--seed", type=seed, metavar="N", default=0, help="of the train images (default: 0)"
    )
    build.add_argument(
        "--image-list",
        type=Path,
        metavar="FILE",
        help="use these images: one id or file name a line",
    )
    add_shared(build, "--cache-dir")
    build.add_argument(
        "--verify",
        action="store_true",
        help="decode every image whole, and hash files again instead of trusting their times",
    )
    build.set_defaults(handler=build_profile)


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


def build_profile(args: argparse.Namespace) -> int:
    """Build or find the subset of a profile, print what it holds and where it is."""
    from qatval.data.subset import build_subset, presets_of

    chosen = profile(presets_of(args.coco_root), args.profile)
    subset = build_subset(
        args.coco_root,
        train_images=chosen.train_images,
        val_images=chosen.val_images,
        seed=args.seed,
        cache_dir=args.cache_dir,
        image_list=args.image_list,
        verify=args.verify,
    )
    for split in (subset.train, subset.val):
        counts = subset.provenance["counts"][split.name]
        details = ", ".join(
            f"{count} {name.replace('_', ' ')}"
            for name, count in counts.items()
            if count and name != "annotations"
        )
        print(f"{split.name}: {details}")
    print(subset.directory)
    return 0


def _side(text: str) -> int:
    value = positive(text)
    if not 32 <= value <= 4096:
        raise argparse.ArgumentTypeError(f"expected 32 to 4096 px, got {text}")
    return value
