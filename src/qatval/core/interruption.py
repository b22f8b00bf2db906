"""Signals that end a command: where what is in hand is safe, and at once if they come again.

A scheduler that preempts a job, a closed terminal and Ctrl-C all ask for the same: keep what there
is and go. A signal raises `Interrupted` wherever the command is, with two exceptions. Within a
`deferred` block, which is a step of a training with the state saved behind it, it waits for the
end of the block. Within an import it waits for the end of that: libraries swallow what is raised
there, or fail later for want of what they did not get to. SIGTERM twice within a second is one
request: at a job's time limit Slurm sends it twice, some milliseconds apart.

Only the process that listens is ended. What a terminal sends to all processes of a command is left
to it by those that it has forked to load data; processes of other programs have signals of their
own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75
"""Of a command that a signal has ended and that goes on when it is given again: EX_TEMPFAIL of
``sysexits.h``, by which a scheduler knows a job that it may requeue."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IMPORTING = "<frozen importlib._bootstrap>"
_SOON = 0.05  # seconds
_ECHO_S = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal has ended the command. Not an Exception: no library takes it for an error."""


_received: str | None = None
_received_at = 0.0
_deferring = 0
_listening: int | None = None  # the process that does


def listen() -> None:
    """End the command on SIGTERM, SIGINT and SIGHUP from now on, the process the second time."""
    global _received, _listening
    _received, _listening = None, os.getpid()
    for number in _SIGNALS:
        # A command that nohup or a shell has put out of a signal's reach stays there.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Listen within the block; what the signals did before, they do after it."""
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    unraisable = sys.unraisablehook
    sys.unraisablehook = _but_interruptions
    listen()
    try:
        yield
    finally:
        # What the libraries do when the interpreter ends comes after that, and is nothing to be
        # interrupted in by an exception that nobody catches.
        atexit.unregister(_die_of_signals)
        atexit.register(_die_of_signals)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = unraisable


def _but_interruptions(unraisable: sys.UnraisableHookArgs) -> None:
    """Say nothing of an interruption that came while an object was being deleted: `check` tells."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _die_of_signals() -> None:
    """End at once on any signal, without a word."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    if os.getpid() != _listening:
        if number == signal.SIGTERM:  # what ends a worker, by whoever started it
            os._exit(128 + number)
        return
    now = time.monotonic()
    if _received is not None:
        if _received == "SIGTERM" == signal.Signals(number).name and now - _received_at < _ECHO_S:
            return
        os._exit(128 + number)
    _received, _received_at = signal.Signals(number).name, now
    _on_alarm(number, frame)


def _on_alarm(_: int, frame: FrameType | None) -> None:
    """Raise if nothing is being imported, else look again soon."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            signal.setitimer(signal.ITIMER_REAL, _SOON)
            return
        frame = frame.f_back
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
    """Return whether a signal has come."""
    return _received is not None


def by() -> str | None:
    """Return the name of the signal that has come, None while none has."""
    return _received


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
