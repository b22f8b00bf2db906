"""One owner per folder, whoever dies and whatever is unlinked meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qatval.core.errors import QatvalError
from qatval.run.claim import Claim

HOLD = """
import sys
from pathlib import Path
from qatval.run.claim import Claim
with Claim() as claim:
    claim.add(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process have a folder until the block ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.communicate("")


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        with pytest.raises(QatvalError) as refused, Claim() as claim:
            claim.add(tmp_path)
        told = str(refused.value)
        assert re.search(
            rf"in use by process {process.pid} on this machine, since '20\d\d-\d\d-\d\dT.+'", told
        )
        assert "\n" not in told
    with Claim() as claim:
        claim.add(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_dead_held_is_free(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        process.kill()
        process.wait()
        with Claim() as claim:
            claim.add(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_for_nothing_is_gone(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "b"):
        with Claim() as claim:
            claim.add(tmp_path / "a")
            with pytest.raises(QatvalError, match="b is in use"):
                claim.add(tmp_path / "b")
        assert not (tmp_path / "a").exists()
        with Claim() as claim:
            claim.add(tmp_path / "a")


def test_a_lock_on_an_unlinked_file_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One opens the file, its holder lets go of it, a third makes it anew: two would hold it."""
    first, third = Claim(), Claim()
    first.add(tmp_path)
    opened = os.open

    def late(path: Path, *args: int) -> int:
        descriptor = opened(path, *args)
        monkeypatch.setattr(os, "open", opened)
        first.release()
        third.add(tmp_path)
        return descriptor

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(QatvalError, match=f"in use by process {os.getpid()}"):
        Claim().add(tmp_path)
    third.release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "host": null}'])
def test_a_holder_that_nobody_can_read(content: str, tmp_path: Path) -> None:
    with Claim() as claim:
        claim.add(tmp_path)
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(QatvalError, match="in use by a process that has left no name"):
            Claim().add(tmp_path)


def test_what_a_holder_says_cannot_forge_lines(tmp_path: Path) -> None:
    with Claim() as claim:
        claim.add(tmp_path)
        (tmp_path / ".lock").write_text('{"pid": 1, "host": "a\\nb\\u001b[2J", "since": "now"}')
        with pytest.raises(QatvalError) as refused:
            Claim().add(tmp_path)
    assert str(refused.value).isprintable()


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(QatvalError, match="cannot write"):
        Claim().add(tmp_path)
    assert (tmp_path / "theirs").read_text() == "precious"


def test_a_folder_that_is_another_one(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with Claim() as claim:
        claim.add(tmp_path)
        claim.add(root)
        claim.check()
        shutil.rmtree(root)
        with pytest.raises(QatvalError, match=r"run was removed, moved or replaced"):
            claim.check()
        root.mkdir()
        with pytest.raises(QatvalError, match=r"run was removed, moved or replaced"):
            claim.check()
        claim.check(tmp_path)


def test_a_killed_holder_leaves_nothing_that_the_next_does_not_remove(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with Claim() as claim:
        claim.add(tmp_path)
    assert list(tmp_path.iterdir()) == []
