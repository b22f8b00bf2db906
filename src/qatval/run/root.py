"""The folder of one run: claimed at once, never half-finished without saying so."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qatval.core.errors import QatvalError
from qatval.core.summary import SUMMARY_NAME, Summary, atomic_write, load_summary, write_summary
from qatval.report.run_markdown import render_run

_OWN_FOLDERS = ("dataset", "ultralytics")
_OWN_FILES = ("summary.md", "ultralytics.log")


class RunRoot:
    """One run's folder and the summary in it.

    The folder says ``incomplete`` from the moment it is claimed until `finish`; whatever ends the
    process in between leaves that behind, with the stage it was in.

    Attributes:
        path: The folder.
        summary: The summary as it stands.
        timings: Seconds per finished stage.
    """

    def __init__(self, path: Path, summary: Summary, *, overwrite: bool = False) -> None:
        """Claim a folder for a run.

        Args:
            path: The run root; made if it does not exist.
            summary: What is known before the run starts.
            overwrite: Whether a finished run there may be replaced.

        Raises:
            QatvalError: If the folder holds a finished run, or cannot be written to.
        """
        self.path = path
        self.timings: dict[str, float] = {}
        self._stage = ("start", time.monotonic())
        if (path / SUMMARY_NAME).exists() and not overwrite:
            self._refuse_finished()
        self.summary = summary
        self._set_incomplete("Running", "the run has not finished")
        write_summary(path, self.summary)
        self._remove_earlier()

    def _refuse_finished(self) -> None:
        try:
            status = load_summary(self.path)["status"]
        except QatvalError as error:
            raise QatvalError(
                f"{self.path} holds an unreadable summary: give another --run-root, or replace "
                "it with --overwrite"
            ) from error
        if status != "incomplete":
            raise QatvalError(
                f"{self.path} already holds a finished run ({status}): give another --run-root, "
                "or replace it with --overwrite"
            )

    def _remove_earlier(self) -> None:
        for folder in _OWN_FOLDERS:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for file in _OWN_FILES:
            (self.path / file).unlink(missing_ok=True)

    def enter(self, stage: str) -> None:
        """Record that a stage begins, and with it how long the one before took."""
        self._end_stage()
        self._stage = (stage, time.monotonic())
        self.summary["error"]["stage"] = stage
        write_summary(self.path, self.summary)

    def _end_stage(self) -> None:
        name, since = self._stage
        seconds = time.monotonic() - since
        self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 3)

    def fail(self, error: BaseException) -> None:
        """Leave the run incomplete, saying why and in which stage."""
        message = str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        self._set_incomplete(type(error).__name__, message)
        self._write()

    def finish(self, measured: Summary) -> None:
        """Complete the run: add what was measured and replace the incomplete summary."""
        self._end_stage()
        self.summary.pop("error", None)
        self.summary = merged(self.summary, measured)
        self.summary["timings"] = {**self.timings, "total": round(sum(self.timings.values()), 3)}
        self._write()

    def _set_incomplete(self, kind: str, message: str) -> None:
        self.summary["status"] = "incomplete"
        self.summary["error"] = {"type": kind, "message": message, "stage": self._stage[0]}

    def _write(self) -> None:
        atomic_write(self.path / "summary.md", render_run(self.summary))
        write_summary(self.path, self.summary)


def merged(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``update`` laid over it, nested objects merged key by key."""
    result = copy.copy(base)
    for key, value in update.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def publish(source: Path, destination: Path, names: Iterable[str]) -> None:
    """Copy those of the named files and folders that exist."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        origin = source / name
        if origin.is_dir():
            shutil.copytree(origin, destination / name, dirs_exist_ok=True)
        elif origin.is_file():
            shutil.copy2(origin, destination / name)
