"""`qatval gate`: may yolo10m be trained."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

OPEN, CLOSED = 0, 3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval gate` to the command line."""
    parser = subparsers.add_parser(
        "gate",
        help="decide whether yolo10m may be trained",
        description="Decide from finished runs whether yolo10m may be trained. "
        "Exit code 0: open. 3: closed, with each criterion that is not met on a line of its own.",
    )
    parser.add_argument(
        "run_roots", nargs="+", type=Path, metavar="RUN_ROOT", help="run root, or folder of runs"
    )
    parser.add_argument(
        "--count-incomplete",
        action="store_true",
        help="let an incomplete ema+qc run close the gate (default: it counts neither way)",
    )
    parser.set_defaults(handler=decide)


def decide(args: argparse.Namespace) -> int:
    """Print the decision and its reasons."""
    from qatval.analysis import gate
    from qatval.analysis.runs import collect

    runs, unreadable = collect(args.run_roots)
    for item in unreadable:
        print(f"qatval: warning: {item.reason}", file=sys.stderr)
    decision = gate.decide(runs, count_incomplete=args.count_incomplete)
    print(f"yolo10m gate: {'open' if decision.yolo10m_allowed else 'closed'}")
    for reason in decision.reasons:
        print(reason)
    return OPEN if decision.yolo10m_allowed else CLOSED
