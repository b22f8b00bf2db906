"""Which runs stand against which: differences of two methods, and gains net of their controls.

Runs that were scored on one training are paired with each other; where a seed has no such runs,
each run of the one method is paired with each of the other. A seed counts once however many pairs
it has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qatval.analysis.intervals import Contrast, Term
from qatval.analysis.runs import LoadedRun


@dataclass(frozen=True)
class Net:
    """A gain beside what its control gains, on the seeds that have all of the runs.

    Attributes:
        gains: The method over its reference, a contrast per seed.
        control_gains: The control over its own reference, on the same seeds.
        nets: The first less the second.
    """

    gains: Sequence[Contrast]
    control_gains: Sequence[Contrast]
    nets: Sequence[Contrast]


def pairs(runs: Sequence[LoadedRun], method: str, reference: str) -> list[Contrast]:
    """Pair two methods' completed runs by seed."""
    return [pairing.contrast() for pairing in _pairings(runs, method, reference).values()]


def net(runs: Sequence[LoadedRun], gain: tuple[str, str], control: tuple[str, str]) -> Net:
    """Set a gain against that of its control, ``(M - R) - (C - CR)``, seed by seed.

    Args:
        runs: Comparable but for the control's quantization.
        gain: Method M and its reference R.
        control: The control C and its reference CR, which may be R itself: it then cancels.
    """
    ours, theirs = _pairings(runs, *gain), _pairings(runs, *control)
    both = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    return Net(
        [one.contrast() for one, _ in both],
        [other.contrast() for _, other in both],
        [one.contrast(less=other) for one, other in both],
    )


@dataclass(frozen=True)
class _Pairing:
    """The runs of two methods on one seed that are subtracted from each other."""

    seed: int
    matches: Sequence[tuple[LoadedRun, LoadedRun]]
    shared_training: bool

    def contrast(self, less: _Pairing | None = None) -> Contrast:
        weights = self._weights()
        shared = self.shared_training
        if less is not None:
            for run_id, (weight, run) in less._weights().items():
                weights[run_id] = (weights.get(run_id, (0.0, run))[0] - weight, run)
            shared = shared and less.shared_training
        terms = tuple(
            Term(weight, run.final, run.resamples)
            for weight, run in weights.values()
            if weight != 0.0 and run.final is not None
        )
        return Contrast(self.seed, terms, shared)

    def _weights(self) -> dict[str, tuple[float, LoadedRun]]:
        share = 1 / len(self.matches)
        found: dict[str, tuple[float, LoadedRun]] = {}
        for match in self.matches:
            for sign, run in zip((share, -share), match, strict=True):
                found[run.run_id] = (found.get(run.run_id, (0.0, run))[0] + sign, run)
        return found


def _pairings(runs: Sequence[LoadedRun], method: str, reference: str) -> Mapping[int, _Pairing]:
    ours, theirs = _by_seed(runs, method), _by_seed(runs, reference)
    found = {}
    for seed in sorted(ours.keys() & theirs.keys()):
        every = [(one, other) for one in ours[seed] for other in theirs[seed]]
        shared = [
            (one, other)
            for one, other in every
            if one.trajectory is not None and one.trajectory == other.trajectory
        ]
        found[seed] = _Pairing(seed, shared or every, bool(shared))
    return found


def _by_seed(runs: Iterable[LoadedRun], method: str) -> Mapping[int, list[LoadedRun]]:
    found: dict[int, list[LoadedRun]] = defaultdict(list)
    for run in runs:
        if run.method == method and run.completed and run.final is not None:
            found[run.seed].append(run)
    return found
