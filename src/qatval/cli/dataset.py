"""`qatval dataset`: draw the embedded dataset, check a dataset, build or find a subset."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qatval.cli.options import add_shared
from qatval.core.formatting import terminal_line
from qatval.core.option_types import positive, seed
from qatval.core.presets import profile, profile_names

_MARKS = {"ok": "ok", "note": "--", "problem": "NO"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval dataset` to the command line."""
    parser = subparsers.add_parser(
        "dataset", help="draw the embedded dataset, build a subset, check"
    )
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

    check = actions.add_parser(
        "check", help="say all that is wrong with a dataset, before a week of training"
    )
    add_shared(check, "--coco-root")
    check.add_argument(
        "--profile", metavar="P", help="only the images this profile uses (default: all images)"
    )
    check.add_argument(
        "--seed", type=seed, metavar="N", default=0, help="of its train images (default: 0)"
    )
    check.add_argument("--verify", action="store_true", help="decode every image whole")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(handler=check_files)


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
    from qatval.data.labels import label_warnings
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
    for warning in label_warnings(subset.provenance):
        print(terminal_line(f"qatval: warning: {warning}"), file=sys.stderr)
    return 0


def check_files(args: argparse.Namespace) -> int:
    """Print a line for each thing that was found; exit code 0 if none of them is a problem."""
    from qatval.data.check import check_dataset
    from qatval.data.subset import presets_of

    counts: dict[str, int | None] = {}
    if args.profile:
        chosen = profile(presets_of(args.coco_root), args.profile)
        counts = {"train_images": chosen.train_images, "val_images": chosen.val_images}
    findings = []
    for finding in check_dataset(args.coco_root, **counts, seed=args.seed, decode=args.verify):
        findings.append(finding)
        if not args.json:
            line = f"{_MARKS[finding.level]}  {finding.subject:18} {finding.message}"
            print(terminal_line(line), flush=True)
    problems = sum(finding.level == "problem" for finding in findings)
    if args.json:
        document = {
            "coco_root": str(args.coco_root),
            "sound": not problems,
            "findings": [vars(finding) for finding in findings],
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif problems:
        print(f"Not ready for a run: {problems} of these lines are marked NO.")
    else:
        print("Ready for a run.")
    return 1 if problems else 0


def _side(text: str) -> int:
    value = positive(text)
    if not 32 <= value <= 4096:
        raise argparse.ArgumentTypeError(f"expected 32 to 4096 px, got {text}")
    return value
