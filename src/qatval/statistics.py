"""How far repeated runs spread, and what their paired differences can tell.

Two kinds of chance stand between a measured difference of two methods and the true one: another
seed would have trained other weights, and other validation images would have scored the same
weights differently. Every seed is scored on the same images, so the two are crossed, not nested:
more seeds do not average the images away.

The interval therefore adds both variances of the mean difference. With ``d_s`` the difference on
seed ``s`` and ``d_s[k]`` the same difference on the k-th resample of the images (a bootstrap that
all runs share)::

    seeds   A = var_s(d_s) / n            n - 1 degrees of freedom
    images  B = var_k(mean_s d_s[k])      images - 1 degrees of freedom
    interval  mean_s(d_s) +- t * sqrt(A + B)

with Student's t at the Welch-Satterthwaite degrees of freedom of ``A + B``. The interaction of
seeds and images is in both terms, which makes the interval a little too wide, never too narrow. A
percentile bootstrap over seeds would be the common alternative; with three to five seeds it covers
far less than it claims, because n values resampled show only (n - 1) / n of their variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
SEEDS_TO_TELL = 3


@dataclass(frozen=True)
class Spread:
    """Repeated values of one quantity, in its own unit.

    Attributes:
        deviation: Sample standard deviation (n - 1), None for a single value.
    """

    count: int
    mean: float
    deviation: float | None
    low: float
    high: float


@dataclass(frozen=True)
class ImageResamples:
    """A metric on bootstrap resamples of the validation images.

    Attributes:
        key: What the resamples are drawn from; only equal keys can be paired.
        images: How many images were resampled.
        values: The metric on each resample.
    """

    key: tuple[int, int, int]
    images: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """What one method scored above another on one seed.

    Attributes:
        seed: The runs' seed.
        difference: Mean over the seed's pairs of runs, in units of the metric.
        shared_training: Whether both methods were scored on one and the same training.
        resampled: The difference on each resample of the images, None where a run has none.
        images: How many images were resampled, 0 without resamples.
    """

    seed: int
    difference: float
    shared_training: bool
    resampled: tuple[float, ...] | None = None
    images: int = 0

    @property
    def image_error(self) -> float | None:
        """Standard error of the difference over validation images, None without resamples."""
        return None if self.resampled is None else math.sqrt(_variance(self.resampled))


@dataclass(frozen=True)
class MeanDifference:
    """A difference over seeds with its interval.

    Attributes:
        mean: Mean over seeds.
        interval: Bounds at `LEVEL`, None below `SEEDS_TO_TELL` seeds.
        positive: On how many seeds the difference is above 0.
        negative: On how many seeds it is below 0.
        images_resampled: Whether the interval includes the chance of the validation images.
    """

    seeds: int
    mean: float
    interval: tuple[float, float] | None
    positive: int
    negative: int
    images_resampled: bool

    @property
    def tells(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0.0 <= self.interval[1]


def spread(values: Sequence[float]) -> Spread | None:
    """Summarise repeated values; None if there are none."""
    if not values:
        return None
    deviation = math.sqrt(_variance(values)) if len(values) > 1 else None
    mean = math.fsum(values) / len(values)
    return Spread(len(values), mean, deviation, min(values), max(values))


def mean_difference(pairs: Sequence[Pair]) -> MeanDifference | None:
    """Combine one pair per seed; None if there are none. The module says how."""
    if not pairs:
        return None
    values = [pair.difference for pair in pairs]
    n = len(values)
    mean = math.fsum(values) / n
    resamples = [pair.resampled for pair in pairs if pair.resampled is not None]
    images_resampled = len(resamples) == n
    interval = None
    if n >= SEEDS_TO_TELL:
        terms = [(_variance(values) / n, n - 1)]
        if images_resampled:
            of_mean = [math.fsum(column) / n for column in zip(*resamples, strict=True)]
            terms.append((_variance(of_mean), max(pairs[0].images - 1, 1)))
        half = _half_width(terms)
        interval = (mean - half, mean + half)
    return MeanDifference(
        seeds=n,
        mean=mean,
        interval=interval,
        positive=sum(value > 0.0 for value in values),
        negative=sum(value < 0.0 for value in values),
        images_resampled=images_resampled,
    )


def prediction_half_width(values: Sequence[float], level: float) -> float:
    """Return how far one more value may lie from the mean of these, at a two-sided level.

    The half width of Student's prediction interval, ``t * s * sqrt(1 + 1/n)``.

    Raises:
        ValueError: If there are fewer than two values.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"a spread needs at least 2 values, got {n}")
    return _t(n - 1, level) * math.sqrt(_variance(values) * (1 + 1 / n))


def _half_width(terms: Sequence[tuple[float, int]]) -> float:
    total = math.fsum(variance for variance, _ in terms)
    if total == 0.0:
        return 0.0
    # shares, not squared variances: those underflow for very small differences
    inverse = math.fsum((variance / total) ** 2 / freedom for variance, freedom in terms)
    return _t(1 / inverse, LEVEL) * math.sqrt(total)


def _t(freedom: float, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
