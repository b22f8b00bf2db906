"""A comparison makes many claims: how often one of them is false.

At 5 % each, ten sentences about equal methods hold a false one in a third of all comparisons. So
p-values are corrected over the family of all that a comparison claims, by Holm's procedure (Scand.
J. Statist. 6 (1979), 65-70): sorted, the j-th smallest of m times ``m - j + 1``, none below its
predecessor. A claim stands if that is 5 % or less, and the chance that any false one does is 5 % at
most, however the claims depend on each other.

A contrast that a margin is given for has three null hypotheses: no difference, worse by the margin
or more, better by the margin or more. At most one of them is true, so the factor is the number of
contrasts that still have a null hypothesis which was not rejected, not the number of hypotheses
(Shaffer, JASA 81 (1986), 826-831; for the three: Goeman, Solari and Stijnen, Stat. Med. 29 (2010),
2117-2125). Without a margin that is Holm's procedure.

The same evidence is one test: FP32 controls stand in every group whose runs they match, and what
they tell of each other counts once, however many groups say it.

What runs declare as their primary contrast before they start is a family of its own: with one
group of runs it is tested by itself.

What a series of seeds tells that was looked at before is tested at the level of the look
(`qatval.analysis.sequential`), the primary contrast and all others alike: when the series ends
depends on all of its values, not on those of the one contrast alone. The share of 5 % that the
family leaves a test is what its looks spend together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from qatval.analysis.claims import Family, Look
from qatval.analysis.intervals import ALPHA
from qatval.analysis.sequential import nominal

Entry = TypeVar("Entry", covariant=True)


@dataclass(frozen=True)
class Test:
    """What a sentence may claim.

    Attributes:
        p_values: Of its null hypotheses, of which at most one is true.
        primary: Whether it was declared before the runs.
        choices: Among how many contrasts it was chosen by its result (Bonferroni).
        counted: Whether it counts in its family. A test whose smallest possible p-value exceeds
            5 % can claim nothing and costs the others nothing (Tarone, Biometrics 46 (1990), 515).
        look: At a series of seeds, None where none was planned.
        evidence: What it rests on, by default on nothing that another test has: tests that agree
            in this and in all else are one.
    """

    __test__ = False  # pytest would collect it by its name

    p_values: tuple[float, ...]
    primary: bool = False
    choices: int = 1
    counted: bool = True
    look: Look | None = None
    evidence: Hashable = field(default_factory=object, repr=False)

    @property
    def family(self) -> Family:
        """The name of its family."""
        return "primary" if self.primary else "all others"


@dataclass(frozen=True)
class Verdict:
    """How a test stands in its family.

    Attributes:
        size: How many tests the family has.
        p_values: The test's, corrected.
        level: At which a null hypothesis of it is rejected at least, whatever becomes of the
            others; what it can find is reckoned with this one.
    """

    family: Family
    size: int
    choices: int
    p_values: tuple[float, ...]
    level: float
    look: Look | None = None

    @property
    def tells(self) -> bool:
        """Whether the test's first null hypothesis, that of no difference, is rejected."""
        return self.p_values[0] <= ALPHA


@dataclass(frozen=True, eq=False)
class Finding(Generic[Entry]):
    """What a comparison found and has yet to say: its words wait for the verdicts on all.

    Attributes:
        test: What it may claim, None where nothing may be.
        say: Makes the entry of the comparison, of the verdict on the test.
    """

    test: Test | None
    say: Callable[[Verdict | None], Entry] = field(repr=False)

    def at(self, look: Look | None) -> Finding[Entry]:
        """Return the same as it is found at a look, None for no plan of looks."""
        return self if self.test is None else Finding(replace(self.test, look=look), self.say)


def judge(findings: Iterable[Finding[object]]) -> Mapping[Finding[object], Verdict]:
    """Return the verdicts on all that have a test, each corrected over its family."""
    members: dict[Family, dict[Test, list[Finding[object]]]] = {}
    for finding in findings:
        if (test := finding.test) is not None:
            members.setdefault(test.family, {}).setdefault(test, []).append(finding)
    verdicts: dict[Finding[object], Verdict] = {}
    for family, tested in members.items():
        counted = [test for test in tested if _counts(test)]
        size = len(counted)
        share = ALPHA / max(size, 1)
        corrected = adjusted(
            [[p * _factor(test, share) for p in test.p_values] for test in counted]
        )
        found = dict(zip(counted, corrected, strict=True))
        for test, saying in tested.items():
            p_values = found.get(test, tuple(1.0 for _ in test.p_values))
            level = _level(test, share)
            verdict = Verdict(family, size, test.choices, p_values, level, test.look)
            verdicts |= dict.fromkeys(saying, verdict)
    return verdicts


def _counts(test: Test) -> bool:
    return test.counted and (test.look is None or test.look.number > 0)


def _level(test: Test, share: float) -> float:
    """Return the level at which a test takes its share of 5 %."""
    own = share / test.choices
    return own if test.look is None or test.look.number == 0 else nominal(test.look, own)


def _factor(test: Test, share: float) -> float:
    """Return by what a test's p-values grow before its family is corrected for.

    Levels that are all multiplied spend less than so many times as much, because wider levels agree
    more often from look to look. So the factor for the smallest share of a family is enough for any
    larger one that Holm's procedure grants.
    """
    return float(test.choices) if test.look is None else share / _level(test, share)


def adjusted(contrasts: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Return p-values corrected over a family, in the order and the shape in which they came.

    Args:
        contrasts: Of each the p-values of its null hypotheses, of which at most one is true.
    """
    ranked = sorted(
        (p, contrast, null)
        for contrast, nulls in enumerate(contrasts)
        for null, p in enumerate(nulls)
    )
    left = [len(nulls) for nulls in contrasts]
    found = [[1.0] * len(nulls) for nulls in contrasts]
    largest = 0.0
    for p, contrast, null in ranked:
        largest = max(largest, min(1.0, p * sum(count > 0 for count in left)))
        found[contrast][null] = largest
        left[contrast] -= 1
    return [tuple(nulls) for nulls in found]
