"""How far repeated runs spread, and what their paired differences can tell.

Two kinds of chance stand between a measured difference of two methods and the true one: another
seed would have trained other weights, and other validation images would have scored the same
weights differently. Every seed is scored on the same images, so the two are crossed, not nested:
more seeds do not average the images away.

What is compared is a contrast: a signed sum of runs on one seed. A difference of two methods has
two of them, a gain net of its control four. The mathematics is the same for both.

The interval therefore adds both variances of the mean contrast. With ``d_s`` the contrast on
seed ``s`` and ``d_s[k]`` the same contrast on the k-th resample of the images (a bootstrap that
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
from functools import cached_property

LEVEL = 0.95
SEEDS_TO_TELL = 3
# Equal gains do not subtract to an exact 0, and without a spread the least remainder would tell.
_REMAINDER = 1e-12


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
class Term:
    """A run's part in a contrast.

    Attributes:
        weight: With its sign; the weights of a contrast add up to 0.
        value: The run's value of the metric.
        resamples: The same on resampled validation images, None where the run has none.
    """

    weight: float
    value: float
    resamples: ImageResamples | None = None


@dataclass(frozen=True)
class Contrast:
    """What some runs of one seed scored above others.

    Attributes:
        seed: The runs' seed.
        terms: Each run once; their order does not matter.
        shared_training: Whether whatever is subtracted from each other directly was scored on
            one and the same training.
    """

    seed: int
    terms: tuple[Term, ...]
    shared_training: bool = False

    @cached_property
    def value(self) -> float:
        """Sum of the runs' values with their weights, in units of the metric."""
        total = math.fsum(term.weight * term.value for term in self.terms)
        return 0.0 if abs(total) < _REMAINDER else total

    @cached_property
    def resampled(self) -> ImageResamples | None:
        """The contrast on each resample, None unless all runs resampled the same images."""
        known = [t.resamples for t in self.terms if t.resamples is not None]
        if not known or len(known) < len(self.terms) or len({r.key for r in known}) > 1:
            return None
        weights = [term.weight for term in self.terms]
        values = tuple(
            math.fsum(weight * value for weight, value in zip(weights, column, strict=True))
            for column in zip(*(resamples.values for resamples in known), strict=True)
        )
        return ImageResamples(known[0].key, known[0].images, values)

    @property
    def image_error(self) -> float | None:
        """Standard error of the contrast over validation images, None without resamples."""
        return None if self.resampled is None else math.sqrt(_variance(self.resampled.values))


@dataclass(frozen=True)
class MeanContrast:
    """A contrast over seeds with its interval.

    Attributes:
        mean: Mean over seeds.
        interval: Bounds at `LEVEL`, None below `SEEDS_TO_TELL` seeds.
        positive: On how many seeds the contrast is above 0.
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


def mean_contrast(contrasts: Sequence[Contrast]) -> MeanContrast | None:
    """Combine one contrast per seed; None if there are none. The module says how."""
    if not contrasts:
        return None
    values = [contrast.value for contrast in contrasts]
    n = len(values)
    mean = math.fsum(values) / n
    resamples = [c.resampled for c in contrasts if c.resampled is not None]
    images_resampled = len(resamples) == n and len({r.key for r in resamples}) == 1
    interval = None
    if n >= SEEDS_TO_TELL:
        terms = [(_variance(values) / n, n - 1)]
        if images_resampled:
            columns = zip(*(r.values for r in resamples), strict=True)
            of_mean = [math.fsum(column) / n for column in columns]
            terms.append((_variance(of_mean), max(resamples[0].images - 1, 1)))
        half = _half_width(terms)
        interval = (mean - half, mean + half)
    return MeanContrast(
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
