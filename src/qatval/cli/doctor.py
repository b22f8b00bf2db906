"""`qatval doctor`: one screen about this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from qatval.config import DEFAULT_COCO_ROOT

_MARKS = {"ok": "ok", "optional": "--", "missing": "NO"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval doctor` to the command line."""
    parser = subparsers.add_parser("doctor", help="say what this machine has and what it lacks")
    parser.add_argument(
        "--coco-root",
        type=Path,
        metavar="DIR",
        default=DEFAULT_COCO_ROOT,
        help="dataset in COCO 2017's layout (default: %(default)s)",
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where subsets are kept")
    parser.set_defaults(handler=report)


def report(args: argparse.Namespace) -> int:
    """Print one line for each piece; exit code 0 if the embedded data can be run on the CPU."""
    from qatval.doctor import examine

    levels = set()
    for finding in examine(args.coco_root, args.cache_dir):
        print(f"{_MARKS[finding.level]}  {finding.subject:14} {finding.message}", flush=True)
        levels.add(finding.level)
    if "missing" in levels:
        print("A run is not possible yet: see the lines marked NO.")
        return 1
    print("A CPU run on the embedded data is possible.")
    return 0
