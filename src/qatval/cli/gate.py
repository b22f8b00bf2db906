"""`qatval gate`: may yolo10m be trained."""

from __future__ import annotations

import argparse
import sys

from qatval.cli.options import add_shared
from qatval.core.formatting import terminal_line

OPEN, CLOSED = 0, 3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval gate` to the command line."""
    parser = subparsers.add_parser(
        "gate",
        help="decide whether yolo10m may be trained",
        description="Decide from finished runs whether yolo10m may be trained. "
        "Exit code 0: open. 3: closed, with each criterion that is not met on a line of its own.",
    )
    add_shared(parser, "run_roots")
    add_shared(parser, "--count-incomplete")
    parser.set_defaults(handler=decide)


def decide(args: argparse.Namespace) -> int:
    """Print the decision and its reasons."""
    from qatval.analysis import gate
    from qatval.analysis.repetition import distinct
    from qatval.analysis.runs import collect

    runs, unreadable = collect(args.run_roots, verify=True)
    for repetition in distinct(runs)[1]:
        print(terminal_line(f"qatval: warning: {repetition}"), file=sys.stderr)
    decision = gate.decide(runs, unreadable=unreadable, count_incomplete=args.count_incomplete)
    print(f"yolo10m gate: {'open' if decision.yolo10m_allowed else 'closed'}")
    for reason in decision.reasons:
        print(terminal_line(reason))
    return OPEN if decision.yolo10m_allowed else CLOSED
