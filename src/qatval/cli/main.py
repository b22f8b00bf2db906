"""``qatval``: parse the command line, run the command, turn errors into one line.

Exit codes: 0 done, 1 could not be done, 2 wrong usage (and 3 where a command says so). A command
that SIGTERM, SIGHUP or SIGINT (Ctrl-C) has ended exits 75 (``EX_TEMPFAIL``: a scheduler may start
it again); a second signal ends it at once, with 128 and its number.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import signal
import sys
from collections.abc import Sequence

from qatval import __version__
from qatval.core import interruption


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    # Not before `main` listens to signals.
    from qatval.cli import (
        cache,
        checkpoints,
        dataset,
        demo,
        doctor,
        export,
        gate,
        judge,
        predict,
        pretrain,
        run,
        score,
        sensitivity,
        study,
        summarize,
        verify,
    )

    parser = argparse.ArgumentParser(
        prog="qatval",
        description="Does a stabilisation method keep 4-bit YOLOv10 training from collapsing, and "
        "what does it cost in accuracy?",
    )
    parser.add_argument("--version", action="version", version=f"qatval {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    commands = (
        demo,
        run,
        study,
        summarize,
        gate,
        verify,
        judge,
        export,
        score,
        predict,
        sensitivity,
        dataset,
        cache,
        checkpoints,
        doctor,
        pretrain,
    )
    for command in commands:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with interruption.listening():
        try:
            return _main(argv)
        except BaseException as error:
            # Whatever it has become in a library, or in the way out.
            if not interruption.requested() and not isinstance(error, KeyboardInterrupt):
                raise
            return _interrupted(error)


def _main(argv: Sequence[str] | None) -> int:
    from qatval.core.environment import prepare_process
    from qatval.core.errors import QatvalError, from_system
    from qatval.core.formatting import terminal_line

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tables and names go beyond ASCII
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    prepare_process()
    warnings = logging.StreamHandler()
    warnings.setFormatter(_OneLine("qatval: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[warnings], level=logging.WARNING)
    try:
        code: int = args.handler(args)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if interruption.requested():
            raise
        told = error if isinstance(error, QatvalError) else from_system(error)
        if told is None:
            raise
        print(terminal_line(f"qatval: error: {told}"), file=sys.stderr)
        return told.exit_code
    return code


class _OneLine(logging.Formatter):
    """Quotes what names in files of others could do to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        from qatval.core.formatting import terminal_line

        return terminal_line(super().format(record))


def _interrupted(error: BaseException) -> int:
    """Say what has ended the command, and how it goes on if that is known; return the exit code."""
    name = interruption.by() or signal.SIGINT.name
    told = str(error) if isinstance(error, interruption.Interrupted) else name
    with contextlib.suppress(OSError):  # a hangup leaves no terminal to say it on
        print(f"qatval: {told if told != name else f'interrupted by {name}'}", file=sys.stderr)
    return interruption.EXIT_CODE
