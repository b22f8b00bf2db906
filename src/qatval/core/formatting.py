"""How numbers are written in every report, so that the same value reads the same everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MISSING = "–"
_LONGEST = 2000  # characters of one thing that is said on a terminal


def printable(text: str) -> str:
    """Quote what would move a cursor, end a line, turn the direction of writing or be invisible.

    For texts that a file or a folder of somebody else's may have named. Lone surrogates, by which
    Python hands on the bytes of a file name, are left to whatever encodes them.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or "\ud800" <= c <= "\udfff" else c.encode("unicode_escape").decode()
        for c in text
    )


def terminal_line(text: str) -> str:
    """Return a text as one line that is safe to print; a very long one is cut."""
    line = printable(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def value(number: float | None) -> str:
    """Write a metric value: three decimals, one more than 128 images can tell apart."""
    return MISSING if number is None else f"{number:.3f}"


def signed(number: float | None) -> str:
    """Write a difference of metric values with its sign; a small one never reads as zero."""
    if number is None:
        return MISSING
    return f"{number:+.3f}" if abs(number) >= 0.0005 or number == 0 else f"{number:+.1g}"


def interval(bounds: Sequence[float] | None) -> str:
    """Write an interval of a difference."""
    return MISSING if bounds is None else f"[{signed(bounds[0])}, {signed(bounds[1])}]"


def divergence(nats: float | None) -> str:
    """Write how far two distributions are apart; a thousandth of a nat is much for BatchNorm."""
    return MISSING if nats is None else f"{nats:.4f}"


def percent(share: float | None) -> str:
    """Write a share in [0, 1]; a small one never reads as none."""
    if share is None:
        return MISSING
    return f"{100 * share:.2g} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"


def rate(share: float) -> str:
    """Write a share in [0, 1] that is known to a few percent at best."""
    return f"{100 * share:.0f} %"


def p_value(number: float) -> str:
    """Write a p-value; a small one never reads as 0, and none reads as 0.05 that is above it."""
    if number < 0.001:
        return "p < 0.001"
    return f"p {number:.2g}" if f"{number:.2g}" != "0.05" or number <= 0.05 else "p > 0.05"


def level(alpha: float) -> str:
    """Write the level of a test."""
    return f"{alpha:.2g}"


def duration(seconds: float) -> str:
    """Write a length of time."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def size(number: float) -> str:
    """Write a number of bytes."""
    return f"{number / 1e6:.2f} MB"


def milliseconds(number: float) -> str:
    """Write a short time, to three digits."""
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f} ms"


def memory(mebibytes: int | None) -> str:
    """Write an amount of memory."""
    return MISSING if mebibytes is None else f"{mebibytes:,} MiB"


def nearest(name: str, known: Iterable[str]) -> str:
    """Write which of the known names may have been meant, or which there are."""
    choices = list(known)
    found = difflib.get_close_matches(name, choices, n=1)
    return f", is it '{found[0]}'?" if found else f"; expected one of {', '.join(choices)}"


def count(number: int, noun: str) -> str:
    """Write how many there are of something."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Write items one after the other, ``"a, b and c"``."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


def setting(value: float | None) -> str:
    """Write a setting as short as it can be."""
    return "not known" if value is None else f"{value:g}"
