"""How far repeated runs spread, and what their paired differences can tell.

Two kinds of chance stand between a measured difference of two methods and the true one: another
seed would have trained other weights, and other validation images would have scored the same
weights differently. Every seed is scored on the same images, so the two are crossed, not nested:
more seeds do not average the images away.

The interval therefore adds both variances of the mean contrast (`qatval.analysis.pairing` says
what a contrast is). With ``d_s`` the contrast on seed ``s`` and ``d_s[k]`` the same contrast on the
k-th resample of the images (a bootstrap that all runs share)::

    seeds   A = var_s(d_s) / n            n - 1 degrees of freedom
    images  B = var_k(mean_s d_s[k])      images - 1 degrees of freedom
    interval  mean_s(d_s) +- t * sqrt(A + B)

with Student's t at the Welch-Satterthwaite degrees of freedom of ``A + B``. The interaction of
seeds and images is in both terms, which makes the interval a little too wide, never too narrow. A
percentile bootstrap over seeds would be the common alternative; with three to five seeds it covers
far less than it claims, because n values resampled show only (n - 1) / n of their variance.

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
SEEDS_TO_TELL = 3


@dataclass(frozen=True)
class MeanContrast:
    """The mean of a contrast over seeds, in the unit of the metric.

    Attributes:
        interval: Bounds at `LEVEL`, None below `SEEDS_TO_TELL` seeds.
        positive, negative: On how many seeds the contrast is above and below 0.
        images_resampled: Whether the interval includes the chance of the validation images.
    """

    seeds: int
    mean: float
    interval: tuple[float, float] | None
    positive: int
    negative: int
    images_resampled: bool

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside of it."""
        return self.interval is not None and not self.interval[0] <= 0.0 <= self.interval[1]


def spread(values: Sequence[float]) -> Spread | None:
    """Summarise repeated values of one quantity, in its own unit; None if there are none."""
    if not values:
        return None
    deviation = math.sqrt(_variance(values)) if len(values) > 1 else None
    return Spread(len(values), math.fsum(values) / len(values), deviation, min(values), max(values))


def mean_contrast(contrasts: NDArray[np.float64], images: int) -> MeanContrast:
    """Return the mean over seeds with its interval.

    Args:
        contrasts: Of shape (seeds, 1 + resamples), with a seed at least: the contrast, then the
            same on each resample of the validation images, NaN where it is not known.
        images: How many images were resampled.
    """
    values, *resampled = contrasts.T.tolist()
    n = len(values)
    mean = math.fsum(values) / n
    means = [math.fsum(column) / n for column in resampled]
    images_resampled = bool(means) and not any(map(math.isnan, means))
    interval = None
    if n >= SEEDS_TO_TELL:
        terms = [(_variance(values) / n, n - 1)]
        if images_resampled:
            terms.append((_variance(means), max(images - 1, 1)))
        half = _half_width(terms)
        interval = (mean - half, mean + half)
    positive, negative = sum(value > 0.0 for value in values), sum(value < 0.0 for value in values)
    return MeanContrast(n, mean, interval, positive, negative, images_resampled)


def image_errors(contrasts: NDArray[np.float64]) -> list[float | None]:
    """Return each seed's standard error over images, of what `mean_contrast` takes, or None."""
    variances = [_variance(again) if again else math.nan for _, *again in contrasts.tolist()]
    return [None if math.isnan(variance) else math.sqrt(variance) for variance in variances]


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
