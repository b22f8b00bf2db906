"""`qatval judge`: where an Ultralytics training fell, and whether the training itself did."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from qatval.core.formatting import count, terminal_line


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval judge` to the command line."""
    parser = subparsers.add_parser(
        "judge",
        help="say where an Ultralytics training collapsed, and whether the training did",
        description="Read results.csv files of Ultralytics trainings (8.x, any task) and say where "
        "the metric fell below half of its best so far, and whether the training loss rose with "
        "it: training diverged, evaluation diverged (it did not rise), never learned, or held. "
        "Exit code 0: all were read, whatever the verdict. 1: one could not be.",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="results.csv", help="files that trainings wrote"
    )
    parser.set_defaults(handler=judge)


def judge(args: argparse.Namespace) -> int:
    """Print a block for each file."""
    from qatval.core.errors import QatvalError

    failed = False
    for file in args.files:
        try:
            for line in _judged(file):
                print(terminal_line(line))
        except QatvalError as error:
            failed = True
            print(terminal_line(f"qatval: error: {error}"), file=sys.stderr)
    return 1 if failed else 0


def _judged(file: Path) -> Iterator[str]:
    from qatval.analysis.falls import fall_lines, headline
    from qatval.analysis.foreign_curve import read_curve
    from qatval.core import trajectory

    curve = read_curve(file)
    found = trajectory.judge(curve.points)
    yield f"{file}: {headline(found)}"
    yield from (f"  {line}" for line in fall_lines(found))
    losses = [point.loss for point in curve.points if point.loss is not None]
    loss = "no training loss"
    if losses:
        summed = count(len(curve.losses), "column")
        loss = f"a training loss ({summed}) of {losses[0]:.3g} at first, {losses[-1]:.3g} at last"
    yield f"  rests on {curve.metric} of {count(len(curve.points), 'epoch')} and {loss}"
    yield from (f"  {note}" for note in curve.notes)
