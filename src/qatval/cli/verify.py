"""`qatval verify`: are runs still what they left."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qatval.cli.options import add_shared
from qatval.core.digests import digest_beside
from qatval.core.formatting import count, terminal_line
from qatval.core.summary import SUMMARY_NAME

if TYPE_CHECKING:
    from qatval.analysis.runs import LoadedRun

_SHOWN = 20  # files of one run


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval verify` to the command line."""
    parser = subparsers.add_parser(
        "verify",
        help="say which files of finished runs are not what the runs left",
        description="Compare every file of runs with the digest that the run recorded, and say "
        "which were changed, are missing or were added. Exit code 0: none. 1: some, or a summary "
        "cannot be read. A run of an older qatval recorded no digests, which is said.",
    )
    add_shared(parser, "run_roots")
    parser.set_defaults(handler=verify)


def verify(args: argparse.Namespace) -> int:
    """Print a line for each run, or for each of its files that differs."""
    from qatval.analysis.runs import collect

    runs, unreadable = collect(args.run_roots, verify=True)
    differ = bool(unreadable)
    for run in runs:
        differences = [*run.differences, *_added(run)]
        for said in differences[:_SHOWN]:
            print(terminal_line(f"NO  {run.root}: {said}"))
        if more := len(differences[_SHOWN:]):
            print(terminal_line(f"NO  {run.root}: {count(more, 'more file')} that differ"))
        if not differences:
            print(terminal_line(_sound(run)))
        differ |= bool(differences)
    for item in unreadable:
        print(terminal_line(f"NO  {item.reason}"))
    return 1 if differ else 0


def _added(run: LoadedRun) -> Iterator[str]:
    from qatval.analysis.evidence import additional_files

    if run.summary.files is not None:
        yield from (
            f"{name} is additional" for name in additional_files(run.root, run.summary.files)
        )


def _sound(run: LoadedRun) -> str:
    files = run.summary.files
    if files is not None:
        return f"ok  {run.root}: {count(len(files) + 1, 'file')} as the run left them"
    if run.completed or not digest_beside(run.root / SUMMARY_NAME).exists():
        return f"--  {run.root}: has no digests, an older qatval wrote it"
    return f"ok  {run.root}: incomplete, its summary is as it was written"
