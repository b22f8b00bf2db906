"""A contrast over seeds with all that its sentence and its entry need, before it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qatval.analysis import words
from qatval.analysis.claims import Equivalence, Pair
from qatval.analysis.collapses import Ending, endings
from qatval.analysis.family import Test, Verdict
from qatval.analysis.intervals import ALPHA, LEVEL, MeanContrast, image_errors, mean_contrast
from qatval.analysis.pairing import Contrast, Scores, evaluate
from qatval.analysis.power import POINT, power_of
from qatval.analysis.runs import LoadedRun
from qatval.core import formatting


@dataclass(frozen=True)
class Measured:
    """A contrast over seeds.

    Attributes:
        mean: Over the seeds on which all runs behind it held.
        pairs: The contrast on each of these.
        common_seeds: On how many all were completed.
        collapsed: On how many of those a method collapsed, by method; empty where none did.
        disputed: On how many of those a method's value is disputed, likewise.
        margin: Within which it is tested to be none, None for not at all.
        evidence: The runs, by id, and what each counts.
    """

    mean: MeanContrast
    pairs: Sequence[Pair]
    shared_training: bool
    common_seeds: int
    collapsed: Mapping[str, int]
    disputed: Mapping[str, int]
    margin: float | None
    evidence: frozenset[tuple[str, float]]

    @property
    def selective(self) -> bool:
        """Whether the mean is over those that held alone, which is no fair sample and no claim."""
        return bool(self.collapsed or self.disputed)

    @property
    def value(self) -> str:
        """The mean with its interval, as sentences have them."""
        mean, interval = formatting.signed(self.mean.mean), self.mean.interval
        return mean if interval is None else f"{mean} {formatting.interval(interval)}"

    def test(self, *, primary: bool = False, choices: int = 1) -> Test | None:
        """Return what it may claim: nothing for one seed, or where it is selective."""
        p_value = self.mean.p_value
        if p_value is None or self.selective:
            return None
        alike = () if self.margin is None else (-self.margin, self.margin)
        p_values = (p_value, *(self.mean.beyond(bound) for bound in alike))
        return Test(p_values, primary, choices, evidence=self.evidence)

    def ended(self, sentence: str, verdict: Verdict | None) -> str:
        """Return a sentence about it with how it stands and what it could have found."""
        if self.selective:
            behind = words.behind(self.collapsed, self.disputed, self.common_seeds)
            return f"{sentence}; {behind}"
        if verdict is None:
            return f"{sentence}; one seed shows no spread and finds nothing"
        equivalence = self._equivalence(verdict)
        alike = [] if equivalence is None else [words.equivalence(equivalence)]
        power = power_of(self.mean, verdict.level, self.margin or POINT)
        found = [] if power is None else [words.could_find(power)]
        if power is not None and verdict.tells:
            found.append(words.overstated(self.mean.mean, power))
        return "; ".join(filter(None, [sentence, *alike, words.standing(verdict), *found]))

    def fields(self, verdict: Verdict | None) -> dict[str, Any]:
        """Return what the entry of every kind of contrast records."""
        mean = self.mean
        return {
            "mean": mean.mean,
            "interval": mean.interval,
            "level": LEVEL,
            "p_value": mean.p_value,
            "seeds": mean.seeds,
            "common_seeds": self.common_seeds,
            "collapsed": dict(self.collapsed),
            "disputed": dict(self.disputed),
            "positive": mean.positive,
            "negative": mean.negative,
            "corrected": words.corrected(verdict) if verdict else None,
            "tells": verdict is not None and verdict.tells,
            "power": power_of(mean, verdict.level, self.margin or POINT) if verdict else None,
            "equivalence": self._equivalence(verdict),
            "shared_training": self.shared_training,
            "images_resampled": mean.images_resampled,
            "pairs": list(self.pairs),
        }

    def _equivalence(self, verdict: Verdict | None) -> Equivalence | None:
        if verdict is None or self.margin is None:
            return None
        _, worse, better = verdict.p_values
        return Equivalence(self.margin, worse, better, worse <= ALPHA, better <= ALPHA)


def measure(
    runs: Sequence[LoadedRun],
    contrasts: Mapping[int, Contrast],
    scores: Scores,
    methods: Iterable[str],
    margin: float | None,
) -> Measured:
    """Return contrasts by seed, one at least, as one.

    Args:
        runs: Of one group.
        contrasts: Among these runs, of seeds on which all of them held.
        scores: Of the same runs.
        methods: Whose runs are behind the contrasts.
        margin: See `Measured`.
    """
    values = evaluate(contrasts.values(), scores.values)
    each = zip(contrasts.items(), values[:, 0].tolist(), image_errors(values), strict=True)
    found = {method: endings(runs, method) for method in methods}
    common = set.intersection(*(set(by_seed) for by_seed in found.values()))

    def ended(ending: Ending) -> dict[str, int]:
        counts = {
            method: sum(by_seed[seed] == ending for seed in common)
            for method, by_seed in found.items()
        }
        return {method: count for method, count in counts.items() if count}

    return Measured(
        mean_contrast(values, scores.images),
        [Pair(seed, value, one.shared_training, error) for (seed, one), value, error in each],
        all(contrast.shared_training for contrast in contrasts.values()),
        len(common),
        ended("collapsed"),
        ended("disputed"),
        margin,
        frozenset(
            (runs[position].run_id, float(contrast.weights[position]))
            for contrast in contrasts.values()
            for position in contrast.weights.nonzero()[0].tolist()
        ),
    )
