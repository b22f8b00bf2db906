"""The folder of one run: where its files lie, and the summary that says how far it is.

::

    run_summary.json  run_summary.json.sha256  summary.md  ultralytics.log
    dataset/                          which data, see `qatval.data.folder`
    ultralytics/<run name>/           what the training left, predictions.json, weights/
    .replacement/                     the same, of a run that is to replace this one

A finished run stays as it is until the run that replaces it is finished too.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import asdict, replace

from qatval.core.digests import digests_of, write_digested
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, encoded
from qatval.core.interruption import deferred
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
from qatval.run.claim import Claim, LostError

_REPLACEMENT = ".replacement"


class RunFolder:
    """One run's folder and the summary in it.

    The folder says ``incomplete`` from the moment it is claimed until `finish`; whatever ends the
    process in between leaves that behind, with the stage it was in. A finished run that is to be
    replaced says what it says: the new one is made in a hidden folder within.

    Attributes:
        path: Where the run's files are made.
        summary: The summary as it stands.
        timings: Seconds per finished stage, those before an interruption included.
        stage: The stage it is in.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        summary: RunSummary,
        *,
        overwrite: bool = False,
        claim: Claim | None = None,
    ) -> None:
        """Begin a run in its folder, or go on with one.

        Args:
            path: The run root; made if it does not exist.
            name: The run's name, of its training's folder.
            summary: What is known before the run starts: incomplete.
            overwrite: Whether a finished run there may be replaced.
            claim: Says whether the folder is still the one that was claimed.

        Raises:
            QatvalError: If the folder holds a finished run, or cannot be written to.
        """
        if not overwrite:
            refuse_finished(path)
        self._root = path
        self._claim = claim
        self.path = path / _REPLACEMENT if _is_occupied(path) else path
        self.dataset = self.path / "dataset"
        self.training = self.path / "ultralytics" / name
        self.predictions = self.training / "predictions.json"
        self.log = self.path / LOG_NAME
        self._report = self.path / "summary.md"
        self.timings = {k: v for k, v in (summary.timings or {}).items() if k != "total"}
        self.stage = "start"
        self._since = time.monotonic()
        self.summary = summary
        write_summary(self.path, summary)

    def clear(self) -> None:
        """Remove the results that an earlier attempt left, and nothing that is the user's own."""
        for own in (self.dataset, self.training.parent):
            shutil.rmtree(own, ignore_errors=True)
        self._report.unlink(missing_ok=True)
        if not self.summary.resumed:
            self.log.unlink(missing_ok=True)
        for name in (SUMMARY_NAME, self._report.name):
            for partial in self._root.glob(f".{name}.*.partial"):  # of a killed process
                partial.unlink(missing_ok=True)
        if self.path == self._root:
            shutil.rmtree(self._root / _REPLACEMENT, ignore_errors=True)

    def abandon(self) -> None:
        """Remove what was to replace a finished run."""
        if self.path != self._root:
            shutil.rmtree(self.path, ignore_errors=True)

    def weights(self, kind: str) -> Path:
        """Return the file of the delivered weights, ``"integer"`` or ``"float"`` ones."""
        return self.training / "weights" / f"{kind}.safetensors"

    def relative(self, path: Path) -> str:
        """Return a path below the folder as the summary records it."""
        return str(path.relative_to(self.path))

    def enter(self, stage: str) -> None:
        """Record that a stage begins, and with it how long the one before took."""
        self._end_stage()
        self.stage, self._since = stage, time.monotonic()
        assert self.summary.error is not None
        self.record(error=replace(self.summary.error, stage=stage), timings=dict(self.timings))

    def record(self, **fields: Any) -> None:
        """Replace fields of the summary and write it; keeps the one before if it cannot be."""
        self._check()
        changed = replace(self.summary, **fields)
        write_summary(self.path, changed)
        self.summary = changed

    def _check(self) -> None:
        if self._claim is not None:
            self._claim.check(self._root)

    def _end_stage(self) -> None:
        seconds = time.monotonic() - self._since
        self.timings[self.stage] = round(self.timings.get(self.stage, 0.0) + seconds, 3)

    def fail(self, error: BaseException) -> None:
        """Leave the run incomplete, saying why and in which stage.

        Never raises: whatever stands in the way of telling must not take the place of the reason.
        """
        unnamed = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        message = str(error) or unnamed
        why = RunError(type=type(error).__name__, message=message, stage=self.stage)
        # As it was last written, which is to say without what could not be written.
        self.summary = replace(self.summary, status="incomplete", error=why)
        try:
            self._check()
        except LostError:
            return  # there is nothing of it to say that of
        with contextlib.suppress(Exception):
            content = encoded(published(self.summary, "run_summary"))
            write_digested(self.path / SUMMARY_NAME, content, _into_its_room)
        try:
            atomic_write(self._report, render_run(self.summary))
        except Exception:
            with contextlib.suppress(OSError):
                self._report.unlink()  # it may be one of a run that all but finished

    def finish(self, summary: RunSummary) -> None:
        """Complete the run: replace the incomplete summary, add how long it took.

        Raises:
            QatvalError: If the folder, or a file that the summary names, is not there any more.
        """
        self._check()
        self._end_stage()
        timings = {**self.timings, "total": round(sum(self.timings.values()), 3)}
        done = replace(summary, error=None, timings=timings)
        published(done, "run_summary")  # or it could not be told either
        self._refuse_missing(done)
        with deferred():
            atomic_write(self._report, render_run(done))
            own = (self._report, self.dataset, self.training.parent)
            done = replace(done, files=digests_of(self.path, own))
            write_summary(self.path, done)
            self.summary = done
            complete_replacement(self._root)

    def _refuse_missing(self, done: RunSummary) -> None:
        """Refuse a summary of files that somebody has removed."""
        named = {**asdict(done.artifacts), "dataset_yaml": done.dataset.dataset_yaml}
        for recorded in named.values():
            if not isinstance(recorded, str) or Path(recorded).is_absolute():
                continue  # it is not there, or not the run's
            if not (self.path / recorded).exists():
                raise QatvalError(
                    f"{self.path / recorded} was removed while the run went on: give the same "
                    "command again"
                )


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


def standing(root: Path) -> RunSummary | None:
    """Return the summary in a run root, None if it holds none.

    Raises:
        QatvalError: If there is one that cannot be read.
    """
    return load_summary(root) if (root / SUMMARY_NAME).exists() else None


def is_finished(root: Path) -> bool:
    """Whether a run root holds a run that got to its end."""
    with contextlib.suppress(QatvalError):
        summary = standing(root)
        return summary is not None and summary.status != "incomplete"
    return False


def unfinished(root: Path) -> RunSummary | None:
    """Return the summary of a run that did not get to its end, None if there is none to be read."""
    place = root / _REPLACEMENT if _is_occupied(root) else root
    summary = None
    with contextlib.suppress(QatvalError):
        summary = standing(place)
    return summary if summary is None or summary.status == "incomplete" else None


def refuse_finished(root: Path, remedy: str = "replace it with --overwrite") -> None:
    """Refuse a run root that holds a run that must not be lost.

    Raises:
        QatvalError: If it is finished, or nobody can say because its summary cannot be read.
    """
    try:
        summary = standing(root)
    except QatvalError as error:
        raise QatvalError(
            f"{root} holds an unreadable summary: give another --run-root, or {remedy}"
        ) from error
    if summary is not None and summary.status != "incomplete":
        raise QatvalError(
            f"{root} already holds a finished run ({summary.status}): give another --run-root, or "
            f"{remedy}"
        )


def _is_occupied(root: Path) -> bool:
    try:
        refuse_finished(root)
    except QatvalError:
        return True
    return False


def complete_replacement(root: Path) -> None:
    """Put a finished run in the place of the one that it replaces, if there is one.

    What was killed on the way goes on when it is called again: the root says ``incomplete`` from
    the first file that is exchanged to the last, then it says what the new run does.

    Raises:
        QatvalError: If the root cannot be written to.
    """
    new, summary = root / _REPLACEMENT, None
    if new.is_symlink():  # nobody's run: what it leads to is not to be moved
        new.unlink()
    with contextlib.suppress(QatvalError):
        summary = standing(new)
    if summary is None or summary.status == "incomplete":
        return
    try:
        why = RunError(
            type="Replacing",
            message="a finished run is being put in the place of the one before; any further run "
            "command with this run root completes that",
        )
        write_summary(root, replace(summary, status="incomplete", error=why, files=None))
        for path in sorted(new.iterdir()):
            if not path.name.startswith(SUMMARY_NAME):
                _exchange(path, root / path.name)
        write_digested(root / SUMMARY_NAME, (new / SUMMARY_NAME).read_bytes())
        shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise QatvalError(
            f"cannot write {root}: {error.strerror}; make it writable and give the command again"
        ) from error


def _exchange(new: Path, old: Path) -> None:
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    new.replace(old)


def publish(source: Path, destination: Path, names: Iterable[str]) -> None:
    """Copy those of the named files and folders that exist."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        origin = source / name
        if origin.is_dir():
            shutil.copytree(origin, destination / name, dirs_exist_ok=True)
        elif origin.is_file():
            shutil.copy2(origin, destination / name)
