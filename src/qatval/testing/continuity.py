"""Sessions that go on: one that was killed is taken up by the next with the same command.

A session whose runs are kept (``--run-root``) says in its folder what it was started with, until it
has come to its end. Its runs go on by themselves then; those that are finished are not run again.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qatval.core.environment import git_state, versions
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write
from qatval.run.claim import Claim

_FILE = "session.json"


class KeptSession:
    """The folder of a session whose runs are kept, this process's own until `end`.

    Attributes:
        directory: An interrupted session's, if one of the same command, commit and versions is
            there that nobody else goes on with, else a new one.
    """

    def __init__(self, root: Path, arguments: Sequence[str]) -> None:
        """Find the folder below ``root``."""
        self._claim = Claim()
        started = {"arguments": list(arguments), "git": git_state(), "versions": versions()}
        self._started = msgspec.json.format(msgspec.json.encode(started), indent=2)
        self.directory = self._interrupted(root) or self._new(root)

    def _interrupted(self, root: Path) -> Path | None:
        for file in sorted(root.glob(f"session-*/{_FILE}"), reverse=True):
            with contextlib.suppress(QatvalError, OSError):
                if file.read_bytes() == self._started:
                    self._claim.add(file.parent)
                    return file.parent
        return None

    def _new(self, root: Path) -> Path:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return root / f"session-{now}-{secrets.token_hex(3)}"

    def begin(self) -> None:
        """Leave in the folder what tells it to a later session."""
        if not (self.directory / _FILE).exists():
            self._claim.add(self.directory)
            atomic_write(self.directory / _FILE, self._started)

    def end(self, *, interrupted: bool) -> None:
        """Let go of the folder, for good if the session was not interrupted."""
        if not interrupted:
            (self.directory / _FILE).unlink(missing_ok=True)
        self._claim.release()
