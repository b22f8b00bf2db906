"""Signals that end a command: where what is in hand is safe, and at once if they come again.

A scheduler that preempts a job, a closed terminal and Ctrl-C all ask for the same: keep what there
is and go. Between two `deferred` blocks a signal ends the command wherever it is; within one it
waits for the end of the block, which is a step of a training with the state saved behind it, or an
import, whose libraries would swallow an exception.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75
"""Of a command that a signal has ended and that goes on when it is given again: EX_TEMPFAIL of
``sysexits.h``, by which a scheduler knows a job that it may requeue."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal has ended the command. Not an Exception: no library takes it for an error."""


_received: str | None = None
_deferring = 0


def listen() -> None:
    """End the command on SIGTERM, SIGINT and SIGHUP from now on, the second time at once."""
    for number in _SIGNALS:
        # A command that nohup or a shell has put out of a signal's reach stays there.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is not None:
        os._exit(128 + number)
    _received = signal.Signals(number).name
    check()


def check() -> None:
    """Raise if a signal has come and nothing defers it.

    What is raised in the middle of a library may be swallowed there: whoever goes on for long asks
    again between two pieces of work.

    Raises:
        Interrupted: With the signal's name.
    """
    if _received is not None and not _deferring:
        raise Interrupted(_received)


def requested() -> bool:
    """Return whether a signal has come that has not ended the command yet."""
    return _received is not None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a signal that comes within the block wait for its end.

    Raises:
        Interrupted: At the end of a block that did not raise itself, if one has come.
    """
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    check()
