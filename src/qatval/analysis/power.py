"""What a comparison could have found: the smallest effect, and what it takes to find a smaller one.

It also says what becomes of a smaller one that is told all the same: it passes the limit by a lucky
draw, and is told too large.

A contrast whose true mean is ``d`` is measured as ``d + e``, e normal with the variance ``A + B``
of `intervals`, and told from zero where it lies beyond ``sqrt(t_A^2 A U + t_B^2 B V)``, U and V
chi-square over their degrees of freedom: the measured variances vary too. The power is the mean,
over U and V, of the normal probability beyond that. With one source of chance this is the power of
Student's test by the noncentral t distribution (Cohen, Statistical Power Analysis, 1988, chapter
2). What is told of ``d`` is ``E[|d + e|]`` over the same, given that it lies beyond (the
exaggeration ratio, or type M error, of Gelman and Carlin, Perspectives on Psychological Science 9
(2014), 641-651, times ``d``). The variances are those that were measured, so what follows from them
is as uncertain as they are: with three seeds the spread over seeds is known to a factor of two at
best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qatval.analysis.claims import Power
from qatval.analysis.intervals import MeanContrast, Term, t_beyond

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POWER = 0.8
POINT = 0.01
"""What is to be found where no margin says: one point of mAP."""

MOST_SEEDS = 1000
MOST_IMAGES = 100_000

# Few degrees of freedom make chi-square skewed, and it takes more nodes to integrate over it.
_SKEWED, _NODES, _NODES_OF_SKEWED = 16, 8, 64


@dataclass(frozen=True)
class Design:
    """How much a contrast varies, and on how many seeds and images it is measured.

    Attributes:
        of_seed: Variance of the contrast from one seed to another.
        of_image: Variance of the mean over images, times their number; 0 where not known.
    """

    seeds: int
    images: int
    of_seed: float
    of_image: float

    def terms(self) -> tuple[Term, Term]:
        """Return the sources of chance in the mean of a contrast."""
        return (
            Term(self.of_seed / self.seeds, self.seeds - 1),
            Term(self.of_image / self.images, max(self.images - 1, 1)),
        )


@functools.lru_cache(maxsize=1024)
def power_of(contrast: MeanContrast, level: float, target: float) -> Power | None:
    """Return what a contrast could have found, None where it shows no spread.

    Args:
        contrast: As it was measured.
        level: At which it is tested, e.g. 0.05.
        target: The effect that seeds and images are counted for, in the metric's unit.
    """
    if contrast.of_seeds is None:
        return None
    images = contrast.of_images
    design = Design(
        contrast.seeds,
        1 + images.freedom if images else 1,
        contrast.of_seeds.variance * contrast.seeds,
        images.variance * (1 + images.freedom) if images else 0.0,
    )
    total = math.fsum(term.variance for term in contrast.terms)
    return Power(
        power=POWER,
        effect=smallest_effect(design, level),
        seeds_share=contrast.of_seeds.variance / total if total else None,
        images_share=images.variance / total if images and total else None,
        target=target,
        seeds_needed=seeds_needed(design, level, target),
        images_needed=images_needed(design, level, target) if images else None,
        half_told_as=told_as(abs(contrast.mean) / 2, design.terms(), level),
    )


def power(effect: float, terms: tuple[Term, Term], level: float) -> float:
    """Return how often a true effect is told from zero, between 0 and 1."""
    from scipy.special import ndtr

    error = math.sqrt(math.fsum(term.variance for term in terms))
    if error == 0.0:
        return float(effect != 0.0)
    limits, weights = _limits(terms, level)
    told = ndtr((effect - limits) / error) + ndtr((-effect - limits) / error)
    return float((weights * told).sum())


def told_as(effect: float, terms: tuple[Term, Term], level: float) -> float | None:
    """Return the mean size of what is measured of a true effect where it is told from zero.

    None where it never is, as far as numbers go.
    """
    import numpy as np
    from scipy.special import ndtr

    error = math.sqrt(math.fsum(term.variance for term in terms))
    if error == 0.0:
        return abs(effect)
    limits, weights = _limits(terms, level)
    above, below = (effect - limits) / error, (-effect - limits) / error
    # of a normal variable beyond a limit on either side: the integral of its size
    densities = (np.exp(-(above**2) / 2) + np.exp(-(below**2) / 2)) / math.sqrt(2 * math.pi)
    sizes = effect * (ndtr(above) - ndtr(below)) + error * densities
    told = float((weights * (ndtr(above) + ndtr(below))).sum())
    return float((weights * sizes).sum()) / told if told else None


def _limits(
    terms: tuple[Term, Term], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far from zero a mean is told, as measured variances vary, and how often."""
    import numpy as np

    squares = np.zeros((1, 1))
    weights = np.ones((1, 1))
    for axis, term in enumerate(terms):
        if term.variance:
            nodes, own = _chi_square(term.freedom)
            t = t_beyond(term.freedom, level / 2)
            shape = (-1, 1) if axis == 0 else (1, -1)
            squares = squares + t * t * term.variance * nodes.reshape(shape)
            weights = weights * own.reshape(shape)
    return np.sqrt(squares), weights


def smallest_effect(design: Design, level: float) -> float:
    """Return the effect that is found with the probability `POWER`."""
    terms = design.terms()
    high = math.sqrt(math.fsum(term.variance for term in terms))
    if high == 0.0:
        return 0.0
    low = 0.0
    while power(high, terms, level) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, terms, level) < POWER else (low, middle)
    return high


def seeds_needed(design: Design, level: float, target: float) -> int | None:
    """Return how many seeds find the target on these images, None where `MOST_SEEDS` do not."""
    return _least(
        lambda seeds: Design(seeds, design.images, design.of_seed, design.of_image),
        (2, MOST_SEEDS),
        level,
        target,
    )


def images_needed(design: Design, level: float, target: float) -> int | None:
    """Return how many images find the target with these seeds, None where `MOST_IMAGES` do not."""
    return _least(
        lambda images: Design(design.seeds, images, design.of_seed, design.of_image),
        (2, MOST_IMAGES),
        level,
        target,
    )


def _least(
    designed: Callable[[int], Design], between: tuple[int, int], level: float, target: float
) -> int | None:
    low, high = between
    if power(target, designed(high).terms(), level) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        if power(target, designed(middle).terms(), level) < POWER:
            low = middle + 1
        else:
            high = middle
    return low


@functools.lru_cache(maxsize=4096)
def _chi_square(freedom: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values of chi-square over its degrees of freedom, and their probabilities."""
    import numpy as np
    from scipy.special import gammaincinv

    nodes, weights = np.polynomial.legendre.leggauss(
        _NODES_OF_SKEWED if freedom < _SKEWED else _NODES
    )
    return gammaincinv(freedom / 2, (nodes + 1) / 2) * 2 / freedom, weights / 2
