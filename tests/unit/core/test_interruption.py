"""Signals, sent for real to processes that are light enough to start one for each test."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qatval.core import interruption

pytestmark = pytest.mark.usefixtures("heeded_signals")

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]

PREAMBLE = """
import os, sys, time
from pathlib import Path
from qatval.core import interruption
from qatval.core.interruption import Interrupted, by, check, deferred, listening, requested

def say(*words):
    print(*words, flush=True)

"""


def run(
    body: str, *numbers: int, prelude: str = "", **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a script within ``listening()``; send it a signal whenever it says ``now``."""
    script = f"{PREAMBLE}{textwrap.dedent(prelude)}\nwith listening():\n"
    script += textwrap.indent(textwrap.dedent(body), "    ")
    command = [sys.executable, "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **options) as process:
        assert process.stdout is not None
        said = []
        waiting = list(numbers)
        for line in process.stdout:
            said.append(line)
            if line == "now\n" and waiting:
                process.send_signal(waiting.pop(0))
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait(20)
    return subprocess.CompletedProcess(command, process.returncode, "".join(said), errors)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_is_in_hand(number: signal.Signals) -> None:
    done = run(
        """
        try:
            say("now")
            time.sleep(20)
        except Interrupted as error:
            say("ended by", error, by())
        """,
        number,
    )
    assert done.stdout == f"now\nended by {number.name} {number.name}\n"
    assert done.returncode == 0


def test_no_exception_handler_takes_it_for_an_error() -> None:
    done = run(
        """
        try:
            try:
                say("now")
                time.sleep(20)
            except Exception:
                say("an error")
        except BaseException as error:
            say(type(error).__name__, isinstance(error, KeyboardInterrupt))
        """,
        signal.SIGTERM,
    )
    assert done.stdout == "now\nInterrupted True\n"


def test_what_is_deferred_is_finished() -> None:
    done = run(
        """
        try:
            with deferred():
                with deferred():
                    say("now")
                    while not requested():
                        time.sleep(0.01)
                    check()
                say("inner done")
            say("never")
        except Interrupted:
            say("then ended")
        """,
        signal.SIGTERM,
    )
    assert done.stdout == "now\ninner done\nthen ended\n"


def test_an_error_in_a_deferred_block_is_not_hidden() -> None:
    done = run(
        """
        try:
            with deferred():
                say("now")
                while not requested():
                    time.sleep(0.01)
                raise ValueError("the reason")
        except ValueError as error:
            say(error)
        """,
        signal.SIGTERM,
    )
    assert done.stdout == "now\nthe reason\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    done = run(
        """
        with deferred():
            say("now")
            while not requested():
                time.sleep(0.01)
            time.sleep(1.1)
            say("now")
            time.sleep(20)
        """,
        signal.SIGTERM,
        number,
    )
    assert done.returncode == 128 + number
    assert done.stderr == ""


def test_a_scheduler_that_says_it_twice_at_once_has_said_it_once() -> None:
    done = run(
        """
        with deferred():
            say("now")
            while not requested():
                time.sleep(0.01)
            say("now")
            time.sleep(0.3)
            say("saved")
        """,
        signal.SIGTERM,
        signal.SIGTERM,
    )
    assert done.stdout == "now\nnow\nsaved\n"
    assert "Interrupted: SIGTERM" in done.stderr


def test_an_import_is_not_cut_in_two(tmp_path: Path) -> None:
    """Neither where a library swallows everything nor where it makes an error of its own of it."""
    (tmp_path / "swallows.py").write_text("try:\n    import slow\nexcept:\n    slow = None\n")
    (tmp_path / "slow.py").write_text(
        "import time\nprint('now', flush=True)\ntime.sleep(0.5)\nwhole = True\n"
    )
    done = run(
        f"""
        sys.path.insert(0, {str(tmp_path)!r})
        try:
            import swallows
            say("imported")
            time.sleep(20)
        except Interrupted:
            say("ended", sys.modules["swallows"].slow.whole)
        """,
        signal.SIGTERM,
    )
    assert done.stdout.splitlines()[-1] == "ended True"
    assert done.returncode == 0


def test_what_is_swallowed_is_asked_for_again() -> None:
    done = run(
        """
        class Deleted:
            def __del__(self):
                say("now")
                time.sleep(1)
        try:
            Deleted()
            say("went on")
            check()
            say("never")
        except Interrupted:
            say("ended")
        """,
        signal.SIGTERM,
    )
    assert done.stdout == "now\nwent on\nended\n"
    assert done.stderr == ""


def test_what_nohup_put_out_of_reach_stays_there() -> None:
    done = run(
        """
        say("now")
        time.sleep(0.3)
        say("went on", by())
        """,
        signal.SIGHUP,
        prelude="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    )
    assert done.stdout == "now\nwent on None\n"


def test_forked_workers_leave_the_terminal_to_their_parent() -> None:
    done = run(
        """
        def forked():
            if (pid := os.fork()) == 0:
                time.sleep(1)
                say("worker done")
                os._exit(0)
            time.sleep(0.2)
            return pid
        pid = forked()
        os.kill(pid, 2), os.kill(pid, 1)
        say(os.waitpid(pid, 0)[1])
        pid = forked()
        os.kill(pid, 15)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert done.stdout == "worker done\n0\n143\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_end_of_the_interpreter_is_quiet(number: signal.Signals) -> None:
    done = run(
        "pass",
        number,
        prelude="""
        import atexit
        @atexit.register
        def linger():
            say("now")
            time.sleep(20)
        """,
    )
    assert done.returncode == -number
    assert done.stderr == ""


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruption.listening():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


COMMAND = """
import sys, time
from qatval.cli import gate
from qatval.cli.main import main

def work(args):
    print("now", flush=True)
    time.sleep(20)

gate.decide = work
sys.exit(main(["gate", "x"]))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 75)]
)
def test_a_command_says_in_a_line_what_ended_it(number: signal.Signals, code: int) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", COMMAND], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (code, f"qatval: interrupted by {number.name}\n")
