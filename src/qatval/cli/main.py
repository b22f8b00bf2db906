"""``qatval``: parse the command line, run the command, turn errors into one line.

Exit codes: 0 done, 1 could not be done, 2 wrong usage (and 3 where a command says so).
"""

from __future__ import annotations

import argparse
import io
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from qatval import __version__
from qatval.cli import (
    cache,
    checkpoints,
    dataset,
    demo,
    doctor,
    gate,
    pretrain,
    run,
    summarize,
    verify,
)
from qatval.core.environment import prepare_process
from qatval.core.errors import QatvalError, from_system
from qatval.core.formatting import terminal_line

_COMMANDS = (demo, run, summarize, gate, verify, dataset, cache, checkpoints, doctor, pretrain)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="qatval",
        description="Does a stabilisation method keep 4-bit YOLOv10 training from collapsing, and "
        "what does it cost in accuracy?",
    )
    parser.add_argument("--version", action="version", version=f"qatval {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tables and names go beyond ASCII
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    prepare_process()
    warnings = logging.StreamHandler()
    warnings.setFormatter(_OneLine("qatval: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[warnings], level=logging.WARNING)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code: int = args.handler(args)
    except KeyboardInterrupt:
        print("qatval: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        told = error if isinstance(error, QatvalError) else from_system(error)
        if told is None:
            raise
        print(terminal_line(f"qatval: error: {told}"), file=sys.stderr)
        return told.exit_code
    return code


class _OneLine(logging.Formatter):
    """Quotes what names in files of others could do to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal_line(super().format(record))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, so that what is left behind says that it is incomplete."""
    raise KeyboardInterrupt
