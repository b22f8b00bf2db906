"""Finished runs as they lie on disk: found below the given folders, read, and judged again.

Summaries may come from older tools, so nothing beyond the contract's required keys is taken for
granted, and the outcome follows from the recorded values by the rule in `qatval.core.stability`.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from qatval.analysis.evidence import file_differences, summary_differences
from qatval.analysis.plausibility import impossible
from qatval.core.errors import QatvalError
from qatval.core.measurements import Bootstrap, TrajectoryRecord
from qatval.core.quantization import FLOAT_MODE
from qatval.core.stability import Stability, share, stability
from qatval.core.summary import SUMMARY_NAME, RunSummary, read_verified
from qatval.core.trajectory import of_run

Outcome = Literal["stable", "collapsed", "degenerate", "disputed", "incomplete"]
"""``disputed``: a check of the measurement itself failed, so that its value cannot be relied on."""


@dataclass(frozen=True)
class Unreadable:
    """A path that holds no usable summary, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class LoadedRun:
    """A run's summary and the folder it was read from.

    Attributes:
        root: Folder of the summary now; ``artifacts.run_root`` is where it was written.
        summary: What it says.
        recorded: The JSON of the same, with keys that this version does not know: what makes runs
            comparable is taken from here, so that nothing unknown is ever averaged away.
        differences: In what the run's files are not those that it left, a line each, as far as
            `collect` was asked to look.
    """

    root: Path
    summary: RunSummary
    recorded: Mapping[str, Any]
    differences: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.summary.run_id

    @property
    def variant(self) -> str:
        """Name of the model variant."""
        return self.summary.model.variant

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.summary.method.variant

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.summary.training.seed

    @property
    def mode(self) -> str:
        """Name of the quantization, e.g. ``"w4a16"``; ``"fp32"`` for a float control."""
        return self.summary.quantization.mode

    @property
    def quantized(self) -> bool:
        """Whether weights are quantized at all."""
        return self.mode != FLOAT_MODE

    @property
    def trained(self) -> bool:
        """Whether the method has a training, as every method of an older tool had."""
        return self.summary.method.training != "none"

    @property
    def completed(self) -> bool:
        """Whether the run came to its end, well or badly."""
        return self.summary.status != "incomplete"

    @property
    def final(self) -> float | None:
        """Final value of the primary metric."""
        return self.summary.metrics.final_value

    @property
    def trajectory(self) -> str | None:
        """Identifies the training; equal for methods that were scored on one and the same."""
        return self.summary.training.trajectory or None

    @property
    def bootstrap(self) -> Bootstrap | None:
        """The final value on resampled validation images, None where it can be paired with none."""
        recorded = self.summary.metrics.bootstrap
        # without an identity nobody knows that two runs resampled the same images
        if recorded is None or self.summary.dataset.identity is None or len(recorded.values) < 2:
            return None
        return recorded

    @cached_property
    def outcome(self) -> Outcome:
        """What became of the run.

        A completed run that the values or the record call collapsed is collapsed: a summary that
        contradicts itself must not open a gate.
        """
        if not self.completed:
            return "incomplete"
        verdict = self._verdict()
        if verdict.collapsed or self.summary.stability.collapsed:
            return "collapsed"
        if verdict.degenerate:
            return "degenerate"
        return "disputed" if self.summary.failed_checks else "stable"

    @property
    def collapsed(self) -> bool:
        """Whether it ended with nothing to compare: collapsed, diverged, never worth anything."""
        return self.outcome in ("collapsed", "degenerate")

    @cached_property
    def course(self) -> TrajectoryRecord | None:
        """The verdict on all of its epochs, None where none are recorded."""
        return of_run(self.summary)

    def _verdict(self) -> Stability:
        metrics = self.summary.metrics
        values = [math.nan if v is None else v for v in (metrics.best_value, self.final)]
        return stability(values, metrics.fp32_value)

    @property
    def kept(self) -> float | None:
        """Final value over the FP32 checkpoint's, None where either is unknown."""
        return share(self.final, self.summary.metrics.fp32_value)

    @property
    def contradiction(self) -> str | None:
        """How the recorded verdict disagrees with the recorded values, None if it does not."""
        if not self.completed:
            return None
        verdict = self._verdict()
        recorded = (self.summary.status, self.summary.stability.collapsed)
        status = "completed-failed" if self.summary.failed_checks else verdict.status
        if recorded == (status, verdict.collapsed):
            return None
        return (
            f"records status {recorded[0]}, collapsed {str(recorded[1]).lower()}, but its best "
            f"{self.summary.metrics.best_value} and final {self.final} make it {status}, "
            f"collapsed {str(verdict.collapsed).lower()}; taken as {self.outcome}"
        )


def collect(
    paths: Iterable[Path], *, verify: bool = False
) -> tuple[list[LoadedRun], list[Unreadable]]:
    """Read the runs at and below some paths, a run that is reached twice once.

    Args:
        paths: Run roots, summary files, or folders that hold runs at any depth.
        verify: Whether to compare all that a run left with its digests; its summary always is.

    Returns:
        The runs in order of path, and what could not be read, or not be believed, with the reason.
    """
    runs: list[LoadedRun] = []
    unreadable: list[Unreadable] = []
    seen: set[str] = set()
    for path in paths:
        found = False
        for file in _summaries(path, unreadable):
            found = True
            # not Path.resolve(), which raises for links in a circle
            if (resolved := os.path.realpath(file)) in seen:
                continue
            seen.add(resolved)
            try:
                runs.append(_read(file, verify=verify))
            except QatvalError as error:
                unreadable.append(Unreadable(file, str(error)))
        if not found:
            unreadable.append(Unreadable(path, f"{path}: {_why_none(path)}"))
    return runs, unreadable


def _read(file: Path, *, verify: bool) -> LoadedRun:
    summary, recorded, fits = read_verified(file)
    if said := impossible(summary):
        raise QatvalError(f"{file} {said}; no run leaves that, restore it or leave it out")
    differences = summary_differences(file, summary, fits)
    if verify and summary.files:
        differences += file_differences(file.parent, summary.files)
    return LoadedRun(file.parent, summary, recorded, tuple(differences))


def _summaries(path: Path, unreadable: list[Unreadable]) -> Iterator[Path]:
    """Yield summaries at and below a path, and list the folders that cannot be looked into."""
    if os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises where it may not look)
        yield path
        return

    def refused(error: OSError) -> None:
        folder = Path(error.filename)
        if folder != path:
            reason = f"cannot look into {folder}: {error.strerror}"
            unreadable.append(Unreadable(folder, reason))

    for folder, subfolders, files in os.walk(path, onerror=refused):
        # hidden ones hold what is not finished, or is being replaced
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if SUMMARY_NAME in files or SUMMARY_NAME in subfolders:
            subfolders.clear()  # what lies below a run root is the run's own
            yield Path(folder) / SUMMARY_NAME


def _why_none(path: Path) -> str:
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            next(path.iterdir(), None)  # raises where it may not look
            return f"holds no {SUMMARY_NAME}"
        return "neither a file nor a folder"
    except FileNotFoundError:
        return "no such file or folder"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
