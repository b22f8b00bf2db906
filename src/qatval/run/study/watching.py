"""A study while it runs: one live table on a terminal, elsewhere a line per change."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TextIO, get_args

from qatval.core.formatting import MISSING, duration, printable, terminal_line, value
from qatval.run.study.standing import Entry, Word

if TYPE_CHECKING:
    from rich.table import Table

Show = Callable[[Sequence[Entry]], None]

_JUST_ENDED = 5
_AROUND = 6  # lines of a table beside its rows, and of the prompt below it
_FIRST: tuple[Word, ...] = ("running", "silent", "interrupted", "failed")


@contextlib.contextmanager
def watching(stream: TextIO | None = None) -> Iterator[Show]:
    """Yield a function that shows how jobs stand, to be called again and again.

    Args:
        stream: Where to, None for stderr.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _Lines(stream)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda entries: live.update(_table(entries, console.height), refresh=True)


def print_entries(entries: Sequence[Entry], stream: TextIO | None = None) -> None:
    """Print once how jobs stand: a table on a terminal, else a line for each that is under way.

    Args:
        entries: Of a study.
        stream: Where to, None for stdout.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        from rich.console import Console

        console = Console(file=stream)
        console.print(_table(entries, console.height))
        return
    for entry in entries:
        if entry.word in _FIRST:
            print(line(entry), file=stream)
    print(counts(entries), file=stream)


def counts(entries: Sequence[Entry]) -> str:
    """Say how many jobs stand how, e.g. ``"3 done, 2 running, 1 waiting (6 jobs)"``."""
    number = Counter(entry.word for entry in entries)
    words = [f"{number[word]:,} {word}" for word in reversed(get_args(Word)) if number[word]]
    return f"{', '.join(words)} ({len(entries):,} jobs)" if words else "no jobs"


def line(entry: Entry) -> str:
    """Say in a line how a job stands."""
    state = entry.state
    said = [str(entry.word)]
    if state is not None:
        if entry.word == "failed":
            said.append(state.error or "for a reason that its log tells")
        elif entry.word == "done":
            said.append(f"mAP50-95 {value(state.value)}, {duration(state.seconds)}")
        elif entry.word != "waiting":
            epoch = _epoch(entry) and f"epoch {_epoch(entry)}"
            said += [cell for cell in (state.stage, epoch, _where(entry)) if cell]
            said.append(f"attempt {state.attempt}")
    return terminal_line(f"{entry.job.name}: {', '.join(said)}")


class _Lines:
    """Prints what has changed since the last time, and first how all stand."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._known: Mapping[str, tuple[Word, int]] | None = None

    def __call__(self, entries: Sequence[Entry]) -> None:
        found = {e.job.name: (e.word, e.state.attempt if e.state else 0) for e in entries}
        if self._known is None:
            self._print(counts(entries))
        known = found if self._known is None else self._known
        done = sum(entry.word == "done" for entry in entries)
        for entry in entries:
            if known[entry.job.name] != found[entry.job.name]:
                self._print(f"{line(entry)} [{done} of {len(entries)} done]")
        self._known = found

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def _table(entries: Sequence[Entry], height: int) -> Table:
    """Return what fits on a screen: what is under way, has failed or has just ended."""
    from rich.table import Table
    from rich.text import Text

    shown = sorted((e for e in entries if e.word in _FIRST), key=lambda e: _FIRST.index(e.word))
    ended = sorted((e for e in entries if e.word == "done"), key=lambda e: e.written)
    shown += reversed(ended[-_JUST_ENDED:])
    fit = shown[: max(height - _AROUND, 1)]
    caption = counts(entries)
    if cut := len(shown) - len(fit):
        caption += f", {cut} more than fit here"
    table = Table(caption=caption, caption_justify="left", box=None, pad_edge=False)
    for column, justify in _COLUMNS.items():
        table.add_column(column, justify=justify, overflow="ellipsis", no_wrap=True)
    for entry in fit:
        table.add_row(*(Text(printable(cell)) for cell in _cells(entry)))
    return table


_COLUMNS: dict[str, Literal["left", "right"]] = {
    "run": "left",
    "state": "left",
    "epoch": "right",
    "mAP": "right",
    "left": "right",
    "where": "left",
}


def _cells(entry: Entry) -> list[str]:
    state = entry.state
    if state is None:
        return [entry.job.name, entry.word, "", "", "", ""]
    word, left, where = str(entry.word), "", _where(entry)
    if entry.word == "running":
        word = state.stage or "starting"
        left = MISSING if state.left_s is None else duration(state.left_s)
    elif entry.word == "failed":
        where = state.error or where
    elif entry.word == "done":
        left = f"took {duration(state.seconds)}"
    return [entry.job.name, word, _epoch(entry), value(state.value), left, where]


def _epoch(entry: Entry) -> str:
    state = entry.state
    if state is None or not state.epoch:
        return ""
    return f"{state.epoch}/{state.epochs}" if state.epochs else str(state.epoch)


def _where(entry: Entry) -> str:
    state = entry.state
    assert state is not None
    return state.host if state.device in (None, "cpu") else f"{state.host}, {state.device}"
