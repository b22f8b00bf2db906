"""The live line of a run: which stage, how far, loss and mAP, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from qatval.core import interruption


class Progress:
    """Shows the stages of a run on a terminal, or one line per milestone in a log.

    On a terminal one line is rewritten in place and vanishes at the end. Anywhere else (a file, a
    CI log) only finished stages and milestones are printed, each once. Stages and steps are where
    a command looks whether a signal has come that a library has swallowed.
    """

    def __init__(self, title: str, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        """Start with a title that every line carries; ``quiet`` shows nothing at all."""
        self._title = title
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = not quiet and self._stream.isatty()
        self._bar: tqdm[Any] | None = None
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the live line."""
        self._close()

    def stage(self, name: str, total: int | None = None) -> None:
        """Enter a stage of ``total`` steps, if it has steps."""
        interruption.check()
        self._close()
        if self._live:
            self._bar = tqdm(
                total=total,
                desc=f"{self._title} | {name}",
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc}"
                + (" {percentage:3.0f}% {postfix} [{elapsed}<{remaining}]" if total else " ..."),
            )

    def step(self, done: int, **values: float) -> None:
        """Show that ``done`` steps of the stage are done, with the latest values."""
        interruption.check()
        if self._bar is not None:
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)

    def milestone(self, text: str) -> None:
        """Print a line that stays."""
        if self._quiet:
            return
        elapsed = time.monotonic() - self._start
        line = f"{self._title} | {text} ({elapsed:.0f} s)"
        if self._live:
            tqdm.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
