"""Which runs are one and the same, whatever their seeds say: evidence counts once.

Copies of a run share its id. A training that stands under several seeds is told by what it left:
its identifier, the digest of its weights, or its history, of which no two seeds have the same
losses to the last digit. A method without a training has nothing that a seed would change, so only
copies of such runs are told.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

from qatval.analysis.conditions import method_settings
from qatval.analysis.runs import LoadedRun


class Repetition(NamedTuple):
    """A run that is left out, the one that it repeats, and what the two have in common."""

    run: LoadedRun
    first: LoadedRun
    what: str

    def __str__(self) -> str:
        """Return it on one line."""
        return (
            f"{self.run.root}: {self.what} as {self.first.root} ({self.first.run_id}), counted once"
        )


def distinct(runs: Iterable[LoadedRun]) -> tuple[list[LoadedRun], list[Repetition]]:
    """Return runs without the repetitions among them, and what is left out.

    Of runs that are one and the same and disagree about what became of it, the one that did not
    hold is kept: a copy that was mended hides nothing.
    """
    kept: list[LoadedRun] = []
    known: dict[Hashable, int] = {}
    repetitions = []
    for run in runs:
        marks = dict(_marks(run))
        what, place = next(
            ((what, known[mark]) for mark, what in marks.items() if mark in known),
            ("", len(kept)),
        )
        for mark in marks:
            known.setdefault(mark, place)
        if place == len(kept):
            kept.append(run)
            continue
        first = kept[place]
        if _against(run) > _against(first):
            kept[place], first, run = run, run, first
        repetitions.append(Repetition(run, first, what))
    return kept, repetitions


def _marks(run: LoadedRun) -> Iterator[tuple[Hashable, str]]:
    """Yield what no two runs have in common, and in words what they would be if they had."""
    yield ("run", run.run_id), "same run"
    if not (run.completed and run.trained):
        return
    # one training can be gone on with in several ways, e.g. by QC at two learning rates
    summary = run.summary
    settings = json.dumps(method_settings(run.recorded), sort_keys=True)
    what = run.variant, run.method, run.mode, settings
    if run.trajectory is not None:
        yield ("trajectory", *what, run.trajectory), "same training"
    if (digest := (summary.files or {}).get(summary.artifacts.weights or "")) is not None:
        yield ("weights", *what, digest.sha256), "same weights"
    values = [(record.value, record.metrics) for record in summary.history or ()]
    if any(metrics for _, metrics in values):
        yield ("history", *what, json.dumps(values, sort_keys=True)), "same history"


def _against(run: LoadedRun) -> int:
    """Return how much a run says against its method, an incomplete one nothing."""
    return {"incomplete": 0, "stable": 1}.get(run.outcome, 2)
