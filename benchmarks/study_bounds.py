"""What the study's intervals on photographs tell after correction, as far as they say.

    python benchmarks/study_bounds.py

That part of ``docs/study.md`` was printed when intervals had Welch's and Satterthwaite's degrees of
freedom and nothing was corrected, and its runs were not kept. A printed mean and interval do not
say how much of the variance the seeds had and how much the images, as Banerjee's bound asks
(docs/statistics.md). So every share is tried, and every value that rounds to the printed ones: each
p-value lies between two bounds, and so does what Holm's procedure makes of it. Sentences that were
not printed count with p-values of 1 and of 0. The part on the embedded data was run again and does
not need this: its comparisons are corrected, and its values by seed are kept in ``results/``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from measure import REPOSITORY, publish, table
from qatval.analysis.comparison import compare
from qatval.analysis.family import adjusted
from qatval.analysis.intervals import ALPHA, Term, t_beyond, two_sided
from qatval.report.contrasts import contrasts_of
from qatval.testing import build_summary, loaded

IMAGES = 128
ROUNDED = 0.0005
SHARES = [step / 20 for step in range(21)]
NUMBER = r"[+-]\d[\d.e-]*"
VALUE = rf"(?P<mean>{NUMBER}) \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\]"
CHOSEN = re.compile(r"the best of (\d+)")


@dataclass(frozen=True)
class Printed:
    """A contrast as it was printed.

    Attributes:
        claim: Of what kind of claim it is a case.
        choices: Among how many pairs it was chosen.
    """

    claim: str
    case: str
    mean: float
    interval: tuple[float, float]
    seeds: int
    choices: int = 1

    @property
    def alone(self) -> bool:
        """Whether its interval, as printed, excludes 0."""
        return not self.interval[0] <= 0.0 <= self.interval[1]

    def p_values(self) -> tuple[float, float]:
        """Return bounds of the p-value that its runs would have, the smaller one first."""
        half = (self.interval[1] - self.interval[0]) / 2
        most = max(self._p_value(-ROUNDED, half + ROUNDED, share) for share in SHARES)
        least = min(self._p_value(ROUNDED, max(half - ROUNDED, 0), share) for share in SHARES)
        return min(least * self.choices, 1.0), min(most * self.choices, 1.0)

    def _p_value(self, further: float, half: float, share: float) -> float:
        freedom = self.seeds - 1, IMAGES - 1
        degrees = 1 / (share**2 / freedom[0] + (1 - share) ** 2 / freedom[1])
        variance = (half / t_beyond(degrees, ALPHA / 2)) ** 2
        of = Term(share * variance, freedom[0]), Term((1 - share) * variance, freedom[1])
        return two_sided(max(abs(self.mean) + further, 0.0), of)


@dataclass(frozen=True)
class Part:
    """What a part of the study printed, and how many sentences its comparisons had."""

    name: str
    printed: Sequence[Printed]
    sentences: int


def part(document: str) -> Part:
    """Return the part on photographs."""
    (body,) = re.findall(r"(?ms)^## On photographs$\n(.*?)(?=^## |\Z)", document)
    seeds = len(re.findall(r"\d+", re.findall(r"seeds (\d[\d, ]*\d)", body)[0]))
    groups = re.findall(r"(?ms)^#### (.+?)$\n(.*?)(?=^###|\Z)", body)
    printed = [one for name, text in groups for one in _printed(name, text, seeds)]
    return Part("On photographs", printed, sum(_sentences(_methods(text)) for _, text in groups))


def told(these: Sequence[Printed], family: Sequence[Printed], silent: int = 0) -> str:
    """Return how many are told from zero, at least and at most, where they differ.

    Args:
        these: Whose number is asked for.
        family: Over whom is corrected, these among them.
        silent: How many more there are whose p-values are not known.
    """
    found = []
    for bound, unknown in ((1, 1.0), (0, 0.0)):
        p_values = [(one.p_values()[bound],) for one in family] + [(unknown,)] * silent
        corrected = zip(family, adjusted(p_values), strict=False)
        found.append(sum(one in these and p <= ALPHA for one, (p,) in corrected))
    least, most = found
    return str(least) if least == most else f"{least} to {most}"


def _methods(text: str) -> list[str]:
    rows = re.findall(r"(?m)^\| (\S+)(?: \(control\))? \| \d", text)
    return [str(row) for row in rows]


def _sentences(methods: Iterable[str]) -> int:
    """Return how many contrasts a comparison makes of these methods."""
    runs = [loaded(build_summary(method, seed)) for method in methods for seed in range(3)]
    return sum(len(contrasts_of(group)) for group in compare(runs).groups)


def _printed(group: str, text: str, seeds: int) -> Iterator[Printed]:
    if against := re.search(rf"(?m)^Training or not, .*?: {VALUE} on", text):
        choices = math.prod(int(of) for of in CHOSEN.findall(against[0]))
        yield _one("training or not", group, against, seeds, choices)
    for row in re.finditer(rf"(?m)^\| (\S+)(?: \(control\))? \|.*\| {VALUE} \|", text):
        name = row[1]
        known = name in ("dampen", "freeze")
        claim = "dampening and freezing" if known else "other differences"
        yield _one(claim, f"{name}, {group}", row, seeds)
    net = rf"(?m)^\| (\S+) over \S+, net of (\S+) \|.*\| (?P<mean>{NUMBER}) \| "
    for row in re.finditer(rf"{net}\[(?P<low>{NUMBER}), (?P<high>{NUMBER})\] \|", text):
        yield _one(_claim(row[1], row[2]), f"{row[1]}, {group}", row, seeds)


def _claim(method: str, control: str) -> str:
    last = method.rpartition("+")[2]
    if last == "qc":
        return (
            "QC net of QC in FP32" if control.startswith("fp32") else "QC net of fresh statistics"
        )
    return {"ema": "averaging net of FP32's"}.get(last, "teacher net of FP32's")


def _one(claim: str, case: str, found: re.Match[str], seeds: int, choices: int = 1) -> Printed:
    mean, low, high = (float(found[name]) for name in ("mean", "low", "high"))
    return Printed(claim, case, mean, (low, high), seeds, choices)


def _rows(part: Part) -> Iterator[list[str]]:
    silent = part.sentences - len(part.printed)
    for claim in dict.fromkeys(one.claim for one in part.printed):
        cases = [one for one in part.printed if one.claim == claim]
        for word, sign in (("above", 1), ("below", -1)):
            these = [one for one in cases if one.mean * sign > 0]
            if alone := sum(one.alone for one in these):
                yield [
                    f"{part.name}: {claim}, {word} zero",
                    *(str(len(cases)), str(alone)),
                    *(told(these, cases), told(these, part.printed, silent)),
                    str(part.sentences),
                ]


def main() -> None:
    document = (REPOSITORY / "docs" / "study.md").read_text(encoding="utf-8")
    publish(
        "study_bounds",
        "The study's claims after correction",
        "`python benchmarks/study_bounds.py`: from the means and intervals printed in "
        "docs/study.md, whose runs were not kept. Cases whose interval, as "
        "printed, excludes 0, and how many of those are told from zero with Banerjee's bound and "
        "Holm's correction: over the cases of the claim, and over all that the part's comparisons "
        "say. A range is what the printed numbers leave open.\n\n"
        + table(
            [
                *("claim", "cases", "by printed intervals", "corrected over the cases"),
                *("corrected over all sentences", "sentences"),
            ],
            [*_rows(part(document))],
        ),
    )


if __name__ == "__main__":
    main()
