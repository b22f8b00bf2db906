"""A study while it runs: one live table on a terminal, elsewhere a line per change."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO, get_args

from qatval.core.formatting import MISSING, duration, printable, terminal_line, value
from qatval.run.study.standing import Entry, Word

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions, Group

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
        yield lambda entries: live.update(_table(entries, console.size), refresh=True)


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
        console.print(_table(entries, console.size))
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


def _table(entries: Sequence[Entry], size: ConsoleDimensions) -> Group:
    """Return what fits on a screen: what is under way, has failed or has just ended."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = sorted((e for e in entries if e.word in _FIRST), key=lambda e: _FIRST.index(e.word))
    ended = sorted((e for e in entries if e.word == "done"), key=lambda e: e.written)
    shown += reversed(ended[-_JUST_ENDED:])
    fit = shown[: max(size.height - _AROUND, 1)]
    caption = counts(entries)
    if cut := len(shown) - len(fit):
        caption += f", {cut} more than fit here"
    rows = [[printable(cell) for cell in _cells(entry)] for entry in fit]
    table = Table(box=None, pad_edge=False)
    for column, width in zip(_COLUMNS, _widths([_COLUMNS, *rows], size.width), strict=True):
        table.add_column(column, width=width, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(table, Text(caption, "italic"))


_COLUMNS = ("run", "state", "epoch", "mAP", "left", "where")
_LEAST = {"where": 12, "state": 12, "run": 16}  # what is cut, in this order, and to how much


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for column, least in _LEAST.items():
        excess = sum(widths) + 2 * (len(widths) - 1) - room
        number = _COLUMNS.index(column)
        widths[number] -= min(max(excess, 0), max(widths[number] - least, 0))
    return widths


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
