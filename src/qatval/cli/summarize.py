"""`qatval summarize`: compare finished runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qatval.cli.options import add_shared
from qatval.core.formatting import terminal_line
from qatval.core.option_types import margin


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval summarize` to the command line."""
    parser = subparsers.add_parser(
        "summarize",
        help="compare finished runs",
        description="Compare finished runs and decide the yolo10m gate. Writes three files beside "
        "each other that differ in their suffix: .json, .md and .html.",
    )
    add_shared(parser, "run_roots")
    parser.add_argument(
        "--out-path",
        required=True,
        type=Path,
        metavar="FILE",
        help="one of the three files, e.g. comparison.json; the others get its name",
    )
    parser.add_argument(
        "--margin",
        type=margin,
        metavar="M",
        help="also test, by two one-sided tests, whether methods are alike within this difference "
        "of mAP, e.g. 0.005; name it before you see the results",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="compare all that the runs left with their digests, and exit with 1 after any "
        "warning: a file that was changed, a summary that could not be read or contradicts itself, "
        "a run that was warned of its data",
    )
    parser.add_argument(
        "--across",
        type=_across,
        metavar="WHAT",
        help="compare runs although this differs, machine (CPU, GPU, several), versions (of qatval "
        "and libraries) or both, comma-separated; each sentence across it says so",
    )
    add_shared(parser, "--count-incomplete", "--cache-dir")
    parser.set_defaults(handler=summarize)


def summarize(args: argparse.Namespace) -> int:
    """Write the comparison and print it as a table."""
    from qatval.analysis.comparison import compare
    from qatval.analysis.runs import collect
    from qatval.report.comparison import check_path, write_comparison
    from qatval.report.terminal import terminal_table

    check_path(args.out_path)
    runs, unreadable = collect(args.run_roots, verify=args.strict)
    comparison = compare(
        runs,
        unreadable,
        count_incomplete=args.count_incomplete,
        margin=args.margin,
        across=args.across or (),
    )
    written = write_comparison(comparison, runs, args.out_path, args.cache_dir)
    print(terminal_table(comparison))
    print(f"report: {written.html}")
    warnings = [item.reason for item in unreadable] + comparison.warnings
    for warning in warnings:
        print(terminal_line(f"qatval: warning: {warning}"), file=sys.stderr)
    return 1 if args.strict and warnings else 0


def _across(text: str) -> tuple[str, ...]:
    from qatval.analysis.conditions import ACROSS

    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in ACROSS]:
        raise argparse.ArgumentTypeError(
            f"expected {' or '.join(ACROSS)}, comma-separated, got '{unknown[0]}'"
        )
    return names
