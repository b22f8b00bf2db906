"""Seeds until told: what a look at unfinished series costs.

Whoever looks after every seed and stops at the first p-value below 5 % claims something of equal
methods in 10 to 17 % of series. A series that is planned so looks at fixed numbers of seeds, and at
each look tests at a nominal level of its own, so that all of them together are wrong in 5 % at
most: a group-sequential test. How much of the 5 % is spent by which look is decided beforehand, by
the function of Lan and DeMets (Biometrika 70 (1983), 659-663) that is like O'Brien and Fleming's
bounds, alpha / 2 on each side, with the share of the planned seeds as information::

    spent(t) = 4 (1 - Phi(z / sqrt(t)))        Phi(z) = 1 - alpha / 4

With three to ten seeds the usual way, the nominal levels of normal statistics with quantiles of
Student's t, is rough, and it is not needed: the joint law of Student's t after n, n + 1, ... values
is known (Jennison and Turnbull, Biometrika 78 (1991), 133-141). With the sum S and the sum of
squares Q of n values of mean 0, ``r = S / sqrt(Q)`` is Student's t in another form,
``t = r sqrt((n - 1) / (n - r^2))``. One more value x changes it to ::

    r' = (r + u) / sqrt(1 + u^2)               u = x / sqrt(Q)

and ``sqrt(n) u`` has Student's t with n degrees, whatever r was before, as lengths and directions
of normal vectors are independent. So r is a Markov chain in one dimension, and the levels follow
from look to look by the recursion of Armitage, McPherson and Rowe (J. R. Statist. Soc. A 132
(1969), 235-244) on that chain.

A p-value is compared with the level of its look, whichever null hypothesis it belongs to. For
two-sided tests of the spread over seeds alone that is exact; a one-sided one is wrong less often,
and so is one that the images take part in, which all looks share (both by simulation,
``benchmarks/sequential.py``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qatval.analysis.claims import Look
from qatval.analysis.intervals import ALPHA
from qatval.analysis.runs import LoadedRun
from qatval.core.errors import UsageError
from qatval.core.summary import SeriesPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRST_LOOK = 3
"""After how many seeds a series is looked at first; with two there is next to no spread to see."""

MOST_SEEDS = 50
"""How many a series can plan for: the levels of so many looks take seconds to reckon."""

# Of the statistic between 0 and its bound, alike in normal scores: levels within 0.3 percent.
_CELLS = 150


def plan(seeds: Sequence[int], margin: float | None) -> SeriesPlan:
    """Return the plan of a series, with a look after each seed from `FIRST_LOOK` on.

    Args:
        seeds: In the order in which they are run, from `FIRST_LOOK` to `MOST_SEEDS`.
        margin: By which the method must not be worse than its reference, in mAP; None for not
            tested.

    Raises:
        UsageError: If there are fewer seeds, or more.
    """
    if not FIRST_LOOK <= len(seeds) <= MOST_SEEDS:
        raise UsageError(
            f"a series that is looked at after every seed from the third on takes {FIRST_LOOK} to "
            f"{MOST_SEEDS} seeds, got {len(seeds)}: give others with --seeds"
        )
    return SeriesPlan(tuple(seeds), nominal_levels(len(seeds), ALPHA), margin)


def look_at(runs: Iterable[LoadedRun], contrast: tuple[str, str] | None) -> Look | None:
    """Return which look of their plan comparable runs are, None where no run has a plan.

    They are one if both methods of the primary contrast were completed on the first seeds of the
    plan and on no others. What is none claims nothing: seeds are too few or left out, runs are of
    several series or declare several contrasts, or the plan has levels of its own.
    """
    runs = list(runs)
    plans = {run.summary.series for run in runs if run.summary.series is not None}
    if not plans:
        return None
    planned = plans.pop()
    completed: dict[str, set[int]] = {name: set() for name in contrast or ()}
    for run in runs:
        if run.completed and run.method in completed:
            completed[run.method].add(run.seed)
    done = set.intersection(*completed.values()) if completed else set[int]()
    number = 1 + len(done) - FIRST_LOOK
    is_look = (
        not plans
        and number >= 1
        and done == set(planned.seeds[: len(done)])
        and _levels_hold(planned)
    )
    return Look(number if is_look else 0, len(planned.levels), len(done), len(planned.seeds))


def _levels_hold(planned: SeriesPlan) -> bool:
    """Whether a plan, which any tool may have written, has the levels that it takes."""
    seeds = len(planned.seeds)
    if seeds != len(set(planned.seeds)) or not FIRST_LOOK <= seeds <= MOST_SEEDS:
        return False
    levels = nominal_levels(seeds, ALPHA)
    return len(levels) == len(planned.levels) and all(
        math.isclose(ours, theirs, rel_tol=1e-3)
        for ours, theirs in zip(levels, planned.levels, strict=True)
    )


def nominal(look: Look, alpha: float) -> float:
    """Return the level of a look whose series is wrong with the probability `alpha` at most."""
    return nominal_levels(look.planned, alpha)[look.number - 1]


@functools.lru_cache(maxsize=64)
def nominal_levels(seeds: int, alpha: float) -> tuple[float, ...]:
    """Return the two-sided levels of the looks after `FIRST_LOOK`, ..., `seeds` seeds.

    Raises:
        ValueError: If there are fewer seeds.
    """
    import numpy as np
    from scipy.special import ndtr

    if seeds < FIRST_LOOK:
        raise ValueError(f"a series needs at least {FIRST_LOOK} seeds, got {seeds}")
    levels = [spent(FIRST_LOOK / seeds, alpha)]
    # The chance of having come to a cell without having been told, either sign.
    score = _score(levels[0])
    mass = 2 * np.diff(ndtr(np.linspace(0.0, score, _CELLS + 1)))
    for n in range(FIRST_LOOK + 1, seeds + 1):
        before = _ratio((np.arange(_CELLS) + 0.5) / _CELLS * score, n - 1)
        share = spent(n / seeds, alpha) - spent((n - 1) / seeds, alpha)
        levels.append(_level_that_spends(share, mass, before, n))
        score = _score(levels[-1])
        edges = _ratio(np.linspace(0.0, score, _CELLS + 1), n)
        within = _below(edges, before, n - 1) - _below(-edges, before, n - 1)
        mass = mass @ np.diff(within, axis=1)
    return tuple(levels)


def spent(information: float, alpha: float) -> float:
    """Return how much of `alpha` is spent when this share of the seeds, above 0, is done."""
    from scipy.special import ndtr, ndtri

    return float(4 * ndtr(ndtri(alpha / 4) / math.sqrt(information)))


def _level_that_spends(
    share: float, mass: NDArray[np.float64], before: NDArray[np.float64], n: int
) -> float:
    """Return the level at which the look after `n` seeds tells with the probability `share`."""
    import numpy as np

    low, high = math.log(share), 0.0  # as others have told before, it takes no less than the share
    while high - low > 1e-10:
        middle = (low + high) / 2
        bound = _ratio(np.array([_score(math.exp(middle))]), n)
        beyond = 1 - _below(bound, before, n - 1) + _below(-bound, before, n - 1)
        if float(mass @ beyond[:, 0]) < share:
            low = middle
        else:
            high = middle
    return math.exp(high)


def _score(level: float) -> float:
    """Return what a standard normal variable exceeds, either sign, with the probability `level`."""
    from scipy.special import ndtri

    return -float(ndtri(level / 2))


def _ratio(scores: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return r of `n` values, as likely to be exceeded as normal scores of 0 or more."""
    import numpy as np
    from scipy.special import ndtr, stdtrit

    t = -stdtrit(n - 1, ndtr(-scores))
    return np.asarray(t * np.sqrt(n / (n - 1 + t * t)))


def _below(bounds: NDArray[np.float64], before: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the probability that r ends below bounds when a value follows `n` others.

    With ``u = tan(phi)`` is ``r' = sqrt(1 + r^2) sin(phi + arctan(r))``.

    Args:
        bounds: Of shape (bounds,).
        before: r of the n values, of shape (values,).

    Returns:
        Of shape (values, bounds).
    """
    import numpy as np
    from scipy.special import stdtr

    r = before[:, None]
    # no sine is beyond 1: at a bound that cannot be reached the two angles are one
    rising = np.arcsin(np.clip(bounds / np.sqrt(1 + r * r), -1, 1))
    angles = np.stack([rising, np.pi - rising]) - np.arctan(r)
    right = np.pi / 2
    rises, falls = stdtr(n, math.sqrt(n) * np.tan(np.clip(angles, -right, right)))
    # a tangent of the right angle itself may have either sign
    rises, falls = np.where(angles[0] <= -right, 0, rises), np.where(angles[1] >= right, 1, falls)
    return np.asarray(1 - (falls - rises))
