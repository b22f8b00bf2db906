"""Pair runs of two methods by seed.

Runs that were scored on one training are paired with each other; where a seed has no such runs,
each run of the one method is paired with each of the other. A seed counts once however many pairs
it has, and not at all where a run of either collapsed or has a value that a check disputes: what is
left then is a comparison of those that held, and `qatval.analysis.collapses` has the others.

What is compared on a seed is a contrast, a weighted sum of its runs: a difference of two methods
has weights +1 and -1, a gain net of its control has the difference of two such rows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from qatval.analysis.runs import LoadedRun

# Equal gains do not subtract to an exact 0, and without a spread the least remainder would tell.
_REMAINDER = 1e-12


@dataclass(frozen=True)
class Contrast:
    """What some runs of one seed scored above others.

    Attributes:
        weights: A weight per run, in the order of the runs it was made from; they add up to 0.
        shared_training: Whether whatever is subtracted from each other directly was scored on
            one and the same training.
    """

    weights: NDArray[np.float64]
    shared_training: bool


@dataclass(frozen=True)
class Scores:
    """Final values of runs, in mAP.

    Attributes:
        values: Of shape (runs, 1 + resamples): the value, then the same on each bootstrap resample
            of the ``images`` validation images; NaN where it is not known.
    """

    values: NDArray[np.float64]
    images: int


def pair_by_seed(runs: Sequence[LoadedRun], method: str, reference: str) -> dict[int, Contrast]:
    """Return a contrast, method minus reference, for each seed on which both held."""
    ours, theirs = _held_by_seed(runs, method), _held_by_seed(runs, reference)
    found = {}
    for seed in sorted(ours.keys() & theirs.keys()):
        every = list(product(ours[seed], theirs[seed]))
        shared = [
            (one, other)
            for one, other in every
            if runs[one].trajectory is not None and runs[one].trajectory == runs[other].trajectory
        ]
        pairs = shared or every
        weights = np.zeros(len(runs))
        for one, other in pairs:
            weights[one] += 1 / len(pairs)
            weights[other] -= 1 / len(pairs)
        found[seed] = Contrast(weights, bool(shared))
    return found


def net_of(
    gains: Mapping[int, Contrast], control_gains: Mapping[int, Contrast]
) -> dict[int, Contrast]:
    """Subtract what a control gains from what a method gains, ``(M - R) - (C - CR)``.

    Both are gains by seed, of `pair_by_seed`, among the same runs; so is what is returned, for the
    seeds that have both. Where CR is R itself, it cancels.
    """
    both = {seed: (gains[seed], control_gains[seed]) for seed in gains if seed in control_gains}
    return {
        seed: Contrast(gain.weights - own.weights, gain.shared_training and own.shared_training)
        for seed, (gain, own) in both.items()
    }


def scores_of(runs: Sequence[LoadedRun]) -> Scores:
    """Return the final values of runs.

    Differences on resampled images need the same resamples: a run that was scored on others than
    most of the runs counts as one without.
    """
    draws = Counter(draw for run in runs if (draw := _draw(run)) is not None)
    common, _ = draws.most_common(1)[0] if draws else ((0, 0, 0), 0)
    values = np.full((len(runs), 1 + common[2]), math.nan)
    for row, run in zip(values, runs, strict=True):
        if run.final is not None:
            row[0] = run.final
        if run.bootstrap is not None and _draw(run) == common:
            row[1:] = run.bootstrap.values
    return Scores(values, common[1])


def _draw(run: LoadedRun) -> tuple[int, int, int] | None:
    """Return what tells a run's resamples: seed of the draw, images, number of resamples."""
    drawn = run.bootstrap
    return None if drawn is None else (drawn.seed, drawn.images, len(drawn.values))


def evaluate(contrasts: Iterable[Contrast], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the value of contrasts, shape (contrasts, columns), of values (runs, columns)."""
    rows = []
    for contrast in contrasts:
        used = np.flatnonzero(contrast.weights)
        products = contrast.weights[used, None] * values[used]
        # fsum rounds once: with numpy's sum the order of the runs would show in the last digits,
        # but for two runs, of which either sum is the same
        rows.append(
            products.sum(axis=0)
            if len(used) == 2
            else [math.fsum(column) for column in products.T.tolist()]
        )
    found = np.array(rows).reshape(len(rows), values.shape[1])
    found[np.abs(found[:, 0]) < _REMAINDER, 0] = 0.0
    return found


def _held_by_seed(runs: Iterable[LoadedRun], method: str) -> Mapping[int, list[int]]:
    """Return the positions of a method's completed runs, without seeds where one did not hold."""
    found: dict[int, list[int]] = defaultdict(list)
    fell = set()
    for position, run in enumerate(runs):
        if run.method == method and run.completed:
            found[run.seed].append(position)
            if run.outcome != "stable":
                fell.add(run.seed)
    return {seed: positions for seed, positions in found.items() if seed not in fell}
