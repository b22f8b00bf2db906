"""``qatval study``: a matrix of runs from a file, here, on a Slurm cluster or on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from qatval.cli.options import add_shared
from qatval.core.errors import UsageError
from qatval.core.formatting import terminal_line
from qatval.core.option_types import positive
from qatval.run.study.launching import LAUNCHERS

if TYPE_CHECKING:
    from qatval.run.study.engines import Engine
    from qatval.run.study.plan import Plan
    from qatval.run.study.standing import Entry


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "study",
        help="run a matrix of runs from a file, on this machine or a cluster",
        usage="%(prog)s FILE --out DIR [options]\n       %(prog)s status DIR",
        description="Run what a study file asks for: variants, precisions, methods and seeds. "
        "Methods that differ only beside or after the gradient steps share one training. The same "
        "command goes on with what is missing: after an interruption, or with more seeds or "
        "methods in the file. 'qatval study status DIR' says how a study stands, from its files.",
        epilog="Exit codes: 0 all done, 1 some runs failed or it could not be done, 2 wrong usage, "
        "75 ended by SIGTERM, SIGHUP or SIGINT (the same command goes on).",
    )
    parser.add_argument("file", metavar="FILE", help="the study (TOML), or 'status'")
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="with status: the study's folder"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study")
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="where runs take place: processes of this machine, a Slurm cluster, a Ray cluster "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="the most that run side by side on this machine (default: what its cores or GPUs "
        "carry)",
    )
    parser.add_argument(
        "--retries",
        type=_retries,
        default=2,
        metavar="N",
        help="further attempts at a run that was lost without having got further (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run, how long and on how much disk"
    )
    add_shared(parser, "--cache-dir")
    parser.set_defaults(handler=study)


def study(args: argparse.Namespace) -> int:
    """Run a study, or say how one stands."""
    if args.file == "status":
        return _status(args)
    if args.folder is not None:
        raise UsageError(f"expected one study file, got '{args.file}' and '{args.folder}'")
    if args.out is None:
        raise UsageError("a study needs a folder: give --out DIR")
    return _run(args)


def _status(args: argparse.Namespace) -> int:
    from qatval.run.study.plan import read_plan
    from qatval.run.study.standing import entries
    from qatval.run.study.watching import print_entries

    if args.folder is None:
        raise UsageError("expected the folder of a study: qatval study status DIR")
    print_entries(entries(read_plan(args.folder), args.folder))
    return 0


def _run(args: argparse.Namespace) -> int:
    from qatval.run.study.estimate import estimate
    from qatval.run.study.file import load_study
    from qatval.run.study.launching import launched
    from qatval.run.study.planning import planned

    if args.launcher != "local" and args.jobs is not None:
        raise UsageError("--jobs is for --launcher local: a cluster has limits of its own")
    asked = load_study(Path(args.file))
    plan = planned(asked, args.out, args.jobs)
    engine, places = launched(args.launcher, plan.resources, args.out, asked, args.jobs)
    for line in estimate(plan, args.out, places).lines():
        print(terminal_line(line), flush=True)
    if args.dry_run:
        return 0
    return carry_out(plan, args.out, engine, retries=args.retries, cache_dir=args.cache_dir)


def carry_out(
    plan: Plan, out: Path, engine: Engine, *, retries: int = 2, cache_dir: Path | None = None
) -> int:
    """Carry a study out, show how it stands and end with its comparison; return the exit code.

    Raises:
        QatvalError: If another controller has the folder, or the engine refuses what it is given.
        Interrupted: If a signal has come; the engine was stopped.
    """
    from qatval.run.study.controller import Controller
    from qatval.run.study.plan import write_plan
    from qatval.run.study.watching import watching

    with Controller(plan, out, engine, retries=retries, cache_dir=cache_dir) as controller:
        write_plan(plan, out)
        with watching() as show:
            entries = controller.run(show)
        _compare(plan, out, cache_dir)
    return _tell_failed(entries, out)


def _compare(plan: Plan, out: Path, cache_dir: Path | None) -> None:
    """Compare all that was completed, on the terminal and in the study's folder."""
    from qatval.analysis.comparison import compare
    from qatval.analysis.runs import collect
    from qatval.report.comparison import write_comparison
    from qatval.report.terminal import terminal_table

    roots = [root for job in plan.jobs for root in job.run_roots(out).values() if root.exists()]
    if not roots:
        return
    runs, unreadable = collect(roots)
    comparison = compare(runs, unreadable, margin=plan.margin)
    written = write_comparison(comparison, runs, out / "comparison.json", cache_dir)
    print(terminal_table(comparison))
    print(f"comparison: {written.markdown}")
    print(f"report: {written.html}")


def _tell_failed(entries: Collection[Entry], out: Path) -> int:
    from qatval.run.study.controller import LOG_NAME
    from qatval.run.study.watching import line

    failed = [entry for entry in entries if entry.word == "failed"]
    for entry in failed:
        log = entry.job.folder(out) / LOG_NAME
        print(f"qatval: {line(entry)}; {log}", file=sys.stderr)
    return 1 if failed else 0


def _retries(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text}")
    return int(text)
