"""How far repeated runs spread, and what their paired differences can tell.

Two kinds of chance stand between a measured difference of two methods and the true one: another
seed would have trained other weights, and other validation images would have scored the same
weights differently. Every seed is scored on the same images, so the two are crossed, not nested:
more seeds do not average the images away.

The interval therefore takes both variances of the mean contrast (`qatval.analysis.pairing` says
what a contrast is). With ``d_s`` the contrast on seed ``s`` and ``d_s[k]`` the same contrast on the
k-th resample of the images (a bootstrap that all runs share)::

    seeds   A = var_s(d_s) / n            n - 1 degrees of freedom
    images  B = var_k(mean_s d_s[k])      images - 1 degrees of freedom
    interval  mean_s(d_s) +- sqrt(t_A^2 A + t_B^2 B)

with Student's t of either's own degrees of freedom (Banerjee, Sankhya 22 (1960), 357-358). For
normal errors it covers at least as often as it says, with two seeds too: given the true shares
``w_A + w_B = 1`` of the variance, the chance that it covers is the mean of
``F(w_A t_A^2 U_A + w_B t_B^2 U_B)``, F the concave distribution function of chi-square with 1
degree and U = chi-square / degrees; by concavity that is no less than the weighted mean of
``E F(t^2 U)``, which is the level for each. The interaction of seeds and images is in both terms,
which widens it further. Welch's and Satterthwaite's degrees of freedom for ``A + B`` give a
narrower interval that misses too often at 3 seeds. A percentile bootstrap over seeds would be the
common alternative; with three to five seeds it covers far less than it claims, because n values
resampled show only (n - 1) / n of their variance.

A p-value is the level at which the same interval touches the value in question, so that the two
never disagree.

Sums are `math.fsum`'s: they round once, so that results do not depend on the order of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qatval.analysis.document import Spread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
ALPHA = 0.05
"""Share of false claims, one minus the level."""

# Below it a tail's probability is 0 for every purpose, and its logarithm still a number.
_TINY = 1e-300


@dataclass(frozen=True)
class Term:
    """One source of chance: its variance of the mean, and the degrees of freedom behind it."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class MeanContrast:
    """The mean of a contrast over seeds, in the unit of the metric.

    Attributes:
        of_seeds: What the choice of seeds adds to the variance of the mean; None for one seed,
            which shows no spread.
        of_images: The same of the validation images, None where they were not resampled.
        positive, negative: On how many seeds the contrast is above and below 0.
    """

    seeds: int
    mean: float
    of_seeds: Term | None
    of_images: Term | None
    positive: int
    negative: int

    @property
    def terms(self) -> tuple[Term, ...]:
        """Every source of chance that is known, none for one seed."""
        if self.of_seeds is None:
            return ()
        return (self.of_seeds,) if self.of_images is None else (self.of_seeds, self.of_images)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Bounds at `LEVEL`, None for one seed."""
        if not self.terms:
            return None
        half = half_width(self.terms, ALPHA)
        return self.mean - half, self.mean + half

    @property
    def images_resampled(self) -> bool:
        """Whether the interval includes the chance of the validation images."""
        return self.of_images is not None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside of it."""
        bounds = self.interval
        return bounds is not None and not bounds[0] <= 0.0 <= bounds[1]

    @property
    def p_value(self) -> float | None:
        """Two-sided, of no difference; None for one seed."""
        return two_sided(self.mean, self.terms) if self.terms else None

    def beyond(self, bound: float) -> float:
        """Return the one-sided p-value of a true mean at or beyond a bound, seen from 0.

        Beyond a negative bound is below it, beyond a positive one above it: either of the two
        one-sided tests of equivalence (Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), 657-680).

        Raises:
            ValueError: If the bound is 0, or there is but one seed.
        """
        if bound == 0.0 or not self.terms:
            raise ValueError(f"no test of a mean beyond {bound} over {self.seeds} seeds")
        inside = math.copysign(1.0, -bound) * (self.mean - bound)
        half = two_sided(inside, self.terms) / 2
        return half if inside > 0 else 1 - half


def spread(values: Sequence[float]) -> Spread | None:
    """Summarise repeated values of one quantity, in its own unit; None if there are none."""
    if not values:
        return None
    deviation = math.sqrt(_variance(values)) if len(values) > 1 else None
    return Spread(len(values), math.fsum(values) / len(values), deviation, min(values), max(values))


def mean_contrast(contrasts: NDArray[np.float64], images: int) -> MeanContrast:
    """Return the mean over seeds with what it takes to judge it.

    Args:
        contrasts: Of shape (seeds, 1 + resamples), with a seed at least: the contrast, then the
            same on each resample of the validation images, NaN where it is not known.
        images: How many images were resampled.
    """
    values, *resampled = contrasts.T.tolist()
    n = len(values)
    means = [math.fsum(column) / n for column in resampled]
    known = bool(means) and not any(map(math.isnan, means))
    return MeanContrast(
        n,
        math.fsum(values) / n,
        Term(_variance(values) / n, n - 1) if n > 1 else None,
        Term(_variance(means), max(images - 1, 1)) if known else None,
        sum(value > 0.0 for value in values),
        sum(value < 0.0 for value in values),
    )


def image_errors(contrasts: NDArray[np.float64]) -> list[float | None]:
    """Return each seed's standard error over images, of what `mean_contrast` takes, or None."""
    if contrasts.shape[1] < 3:
        return [None] * len(contrasts)
    deviations = contrasts[:, 1:].std(axis=1, ddof=1).tolist()
    return [None if math.isnan(deviation) else deviation for deviation in deviations]


def prediction_half_width(values: Sequence[float], level: float) -> float:
    """Return how far one more value may lie from the mean of these, at a two-sided level.

    The half width of Student's prediction interval, ``t * s * sqrt(1 + 1/n)``.

    Raises:
        ValueError: If there are fewer than two values.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"a spread needs at least 2 values, got {n}")
    return t_beyond(n - 1, (1 - level) / 2) * math.sqrt(_variance(values) * (1 + 1 / n))


def half_width(terms: Sequence[Term], alpha: float) -> float:
    """Return half the width of the interval that misses with probability `alpha` at most."""
    return math.sqrt(math.fsum(t_beyond(t.freedom, alpha / 2) ** 2 * t.variance for t in terms))


def two_sided(distance: float, terms: Sequence[Term]) -> float:
    """Return the p-value of a mean this far from where it should be: ``half_width`` inverted."""
    from scipy.special import stdtr

    varying = [term for term in terms if term.variance > 0.0]
    distance = abs(distance)
    if distance == 0.0:
        return 1.0
    if not varying:
        return 0.0
    # with equal degrees of freedom everywhere this would be Student's t
    t = distance / math.sqrt(math.fsum(term.variance for term in varying))
    tails = [float(stdtr(term.freedom, -t)) for term in varying]
    low, high = math.log(max(min(tails), _TINY)), math.log(max(*tails, _TINY))
    while high - low > 1e-12 * max(1.0, -low):
        middle = (low + high) / 2
        if half_width(varying, 2 * math.exp(middle)) > distance:
            low = middle
        else:
            high = middle
    return min(2 * math.exp(high), 1.0)


def t_beyond(freedom: float, tail: float) -> float:
    """Return the value that Student's t exceeds with the probability `tail`."""
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, tail))


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
