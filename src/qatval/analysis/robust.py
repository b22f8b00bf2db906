"""Summaries of a method's runs that one bad seed does not move: median, interquartile mean.

As rliable has them (Agarwal et al., NeurIPS 2021). The share of seeds on which one method beats
another stands beside them (`qatval.analysis.collapses.seed_share`): rliable's probability of
improvement, but over pairs of one seed, since seeds pair the runs here. It has an exact interval;
rliable's stratified bootstrap of n runs can show nothing that n runs did not, which is far too
little at three to five seeds.

A run that diverged counts as 0: it delivered nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from qatval.analysis.document import Robust


def robust(finals: Sequence[float | None]) -> Robust | None:
    """Return the robust summaries of runs' final values, None where there are no runs."""
    if not finals:
        return None
    values = sorted(0.0 if value is None else value for value in finals)
    cut = len(values) // 4  # a quarter from either end, rounded down, as scipy.stats.trim_mean
    middle = values[cut : len(values) - cut]
    return Robust(statistics.median(values), math.fsum(middle) / len(middle))
