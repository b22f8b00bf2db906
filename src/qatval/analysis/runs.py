"""Finished runs as they lie on disk: found below the given folders, read, and judged again.

Summaries may come from older tools, so nothing beyond the contract's required keys is taken for
granted, and the outcome follows from the recorded values by the rule in `qatval.core.stability`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from qatval.core.errors import QatvalError
from qatval.core.measurements import Bootstrap
from qatval.core.quantization import FLOAT_MODE
from qatval.core.stability import Stability, stability
from qatval.core.summary import SUMMARY_NAME, RunSummary, read_summary

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
    """

    root: Path
    summary: RunSummary
    recorded: Mapping[str, Any]

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

    def _verdict(self) -> Stability:
        metrics = self.summary.metrics
        values = [math.nan if v is None else v for v in (metrics.best_value, self.final)]
        return stability(values, metrics.fp32_value)

    @property
    def kept(self) -> float | None:
        """Final value over the FP32 checkpoint's, None where either is unknown."""
        fp32 = self.summary.metrics.fp32_value
        return self.final / fp32 if self.final is not None and fp32 else None

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


def collect(paths: Iterable[Path]) -> tuple[list[LoadedRun], list[Unreadable]]:
    """Read the runs at and below some paths, a run that is reached twice once.

    Args:
        paths: Run roots, summary files, or folders that hold runs at any depth.

    Returns:
        The runs in order of path, and what could not be read with the reason.
    """
    runs: list[LoadedRun] = []
    unreadable: list[Unreadable] = []
    seen: set[Path] = set()
    for path in paths:
        files = list(_summaries(path))
        for file in files:
            if (resolved := file.resolve()) in seen:
                continue
            seen.add(resolved)
            try:
                runs.append(LoadedRun(file.parent, *read_summary(file)))
            except QatvalError as error:
                unreadable.append(Unreadable(file, str(error)))
        if not files:
            what = f"holds no {SUMMARY_NAME}" if path.is_dir() else "no such file or folder"
            unreadable.append(Unreadable(path, f"{path}: {what}"))
    return runs, unreadable


def _summaries(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        if SUMMARY_NAME in files:
            subfolders.clear()  # what lies below a run root is the run's own
            yield Path(folder) / SUMMARY_NAME
