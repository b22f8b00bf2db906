"""The folder of one run: where its files lie, and the summary that says how far it is.

::

    run_summary.json  run_summary.json.sha256  summary.md  ultralytics.log
    dataset/                          which data, see `qatval.data.folder`
    ultralytics/<run name>/           what the training left, predictions.json, weights/
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from qatval.core.digests import digests_of, write_digested
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, encoded
from qatval.core.schema import published
from qatval.core.summary import (
    LOG_NAME,
    SUMMARY_NAME,
    RunError,
    RunSummary,
    load_summary,
    write_summary,
)
from qatval.report.run_markdown import render_run


class RunFolder:
    """One run's folder and the summary in it.

    The folder says ``incomplete`` from the moment it is claimed until `finish`; whatever ends the
    process in between leaves that behind, with the stage it was in.

    Attributes:
        path: The folder.
        summary: The summary as it stands.
        timings: Seconds per finished stage.
    """

    def __init__(
        self, path: Path, name: str, summary: RunSummary, *, overwrite: bool = False
    ) -> None:
        """Claim a folder for a run.

        Args:
            path: The run root; made if it does not exist.
            name: The run's name, of its training's folder.
            summary: What is known before the run starts: incomplete.
            overwrite: Whether a finished run there may be replaced.

        Raises:
            QatvalError: If the folder holds a finished run, or cannot be written to.
        """
        self.path = path
        self.dataset = path / "dataset"
        self.training = path / "ultralytics" / name
        self.predictions = self.training / "predictions.json"
        self.log = path / LOG_NAME
        self._report = path / "summary.md"
        self.timings: dict[str, float] = {}
        self._stage = ("start", time.monotonic())
        if (path / SUMMARY_NAME).exists() and not overwrite:
            self._refuse_finished()
        self.summary = summary
        write_summary(path, summary)
        for own in (self.dataset, self.training.parent):
            shutil.rmtree(own, ignore_errors=True)
        for own in (self._report, self.log):
            own.unlink(missing_ok=True)

    def weights(self, kind: str) -> Path:
        """Return the file of the delivered weights, ``"integer"`` or ``"float"`` ones."""
        return self.training / "weights" / f"{kind}.safetensors"

    def relative(self, path: Path) -> str:
        """Return a path below the folder as the summary records it."""
        return str(path.relative_to(self.path))

    def _refuse_finished(self) -> None:
        try:
            status = load_summary(self.path).status
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

    def enter(self, stage: str) -> None:
        """Record that a stage begins, and with it how long the one before took."""
        self._end_stage()
        self._stage = (stage, time.monotonic())
        assert self.summary.error is not None
        self.record(error=replace(self.summary.error, stage=stage))

    def record(self, **fields: Any) -> None:
        """Replace fields of the summary and write it; keeps the one before if it cannot be."""
        changed = replace(self.summary, **fields)
        write_summary(self.path, changed)
        self.summary = changed

    def _end_stage(self) -> None:
        name, since = self._stage
        seconds = time.monotonic() - since
        self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 3)

    def fail(self, error: BaseException) -> None:
        """Leave the run incomplete, saying why and in which stage.

        Never raises: whatever stands in the way of telling must not take the place of the reason.
        """
        message = str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        why = RunError(type=type(error).__name__, message=message, stage=self._stage[0])
        # As it was last written, which is to say without what could not be written.
        self.summary = replace(self.summary, status="incomplete", error=why)
        with contextlib.suppress(Exception):
            content = encoded(published(self.summary, "run_summary"))
            write_digested(self.path / SUMMARY_NAME, content, _into_its_room)
        try:
            atomic_write(self._report, render_run(self.summary))
        except Exception:
            with contextlib.suppress(OSError):
                self._report.unlink()  # it may be one of a run that all but finished

    def finish(self, summary: RunSummary) -> None:
        """Complete the run: replace the incomplete summary, add how long it took."""
        self._end_stage()
        timings = {**self.timings, "total": round(sum(self.timings.values()), 3)}
        done = replace(summary, error=None, timings=timings)
        published(done, "run_summary")  # or it could not be told either
        atomic_write(self._report, render_run(done))
        own = (self._report, self.dataset, self.training.parent)
        done = replace(done, files=digests_of(self.path, own))
        write_summary(self.path, done)
        self.summary = done


def _into_its_room(file: Path, content: bytes) -> None:
    """Replace a file, on a full disk in the room that the one before has."""
    try:
        atomic_write(file, content)
    except QatvalError:
        if len(content) > max(file.stat().st_size, 512 * file.stat().st_blocks):
            raise
        with file.open("r+b") as stream:
            stream.write(content)
            stream.truncate()


def publish(source: Path, destination: Path, names: Iterable[str]) -> None:
    """Copy those of the named files and folders that exist."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        origin = source / name
        if origin.is_dir():
            shutil.copytree(origin, destination / name, dirs_exist_ok=True)
        elif origin.is_file():
            shutil.copy2(origin, destination / name)
