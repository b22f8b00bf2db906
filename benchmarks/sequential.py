"""How often a series of seeds claims what is not so: `docs/sequential.md`, the tables.

    python benchmarks/sequential.py [--repetitions 2000] [--processes 2]

Of equal methods it takes five times as many; with the default half an hour of one core.

Series of known truth, drawn as `error_rates.py` draws its comparisons, are looked at after every
seed from the third on through the product's own functions: `qatval.analysis.comparison.findings` of
the seeds so far and `qatval.analysis.family.judge`. A series ends at the look that tells its
primary contrast, ``ema`` against ``baseline``, or shows it to be no worse than the margin. The
first series of every cell are held to `qatval.analysis.stopping.standing`, which is what ends real
ones.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from error_rates import CHECKED, FAMILIES, MARGIN, SPREADS, Cell, points, rate, simulated
from measure import publish, table
from qatval.analysis.comparability import groups
from qatval.analysis.comparison import findings
from qatval.analysis.family import judge
from qatval.analysis.intervals import ALPHA
from qatval.analysis.sequential import FIRST_LOOK, nominal_levels, plan
from qatval.analysis.stopping import standing
from qatval.testing import build_summary, loaded

CONTRAST = ("ema", "baseline")
SEEDS = (4, 6, 10, 20)
OF_SEEDS_ALONE = 0.05
"""A spread beside which the chance of the images is nothing."""
MORE = 5
"""Times as many series of equal methods as of others: their rates are held to a bound."""


@dataclass
class Series:
    """What series of one kind came to."""

    ended: int = 0
    apart: int = 0  # the primary contrast was told apart
    alike: int = 0  # it was shown to be no worse than the margin
    naive: int = 0  # its p-value was 5 % or less at some look
    others: int = 0  # any other contrast was told apart at the end
    seeds: list[int] = field(default_factory=list)  # at the end
    gains: list[float] = field(default_factory=list)  # what ema is claimed to gain


def series(job: tuple[Cell, int, int]) -> Series:
    """Run made-up series; the job is their kind, how many, and where to begin."""
    cell, repetitions, start = job
    planned = plan(range(cell.seeds), cell.margin)
    changes = {
        "primary": dict(zip(("method", "reference"), CONTRAST, strict=True)),
        "series": msgspec.to_builtins(planned),
    }
    runs = [
        loaded(build_summary(method, seed, (0.6, 0.6, 0.6), resamples=2, changes=changes))
        for method in FAMILIES[cell.sentences]
        for seed in range(cell.seeds)
    ]
    group = groups(runs)[0]
    order = [next(i for i, run in enumerate(runs) if run is member) for member in group.runs]
    found = Series()
    for repetition in range(start, start + repetitions):
        key = (repetition, cell.seeds, round(1e4 * cell.spread), cell.sentences, 1)
        drawn = simulated(cell, runs, np.random.default_rng(key))
        sorted_runs = [drawn[i] for i in order]
        told = naive = False
        for seeds in range(FIRST_LOOK, cell.seeds + 1):
            so_far = [run for run in sorted_runs if run.seed < seeds]
            here = findings(group._replace(runs=so_far), cell.margin)
            verdicts = judge(list(here.all()))
            first = here.differences[0]  # every family has ema against baseline first
            assert first.test is not None
            primary = verdicts[first]
            naive = naive or first.test.p_values[0] <= ALPHA
            if told:  # looked at further for the naive rule alone
                if naive:
                    break
                continue
            alike = cell.margin is not None and primary.p_values[1] <= ALPHA
            if repetition < CHECKED:
                assert bool(standing(so_far, CONTRAST).told) == (primary.tells or alike)
            if primary.tells or alike or seeds == cell.seeds:
                told = primary.tells or alike
                found.apart += primary.tells
                found.alike += alike
                found.others += any(v.tells for v in verdicts.values() if v is not primary)
                found.seeds.append(seeds)
                if primary.tells and (said := first.say(primary)).mean > 0:
                    assert (said.method, said.reference) == CONTRAST
                    found.gains.append(said.mean)
        found.naive += naive
        found.ended += 1
    return found


def run_cells(cells: Sequence[Cell], repetitions: int, processes: int) -> dict[Cell, Series]:
    """Return what the series of cells came to; the processes take parts of each."""
    part = max(1, repetitions // 8)
    jobs = [
        (cell, min(part, repetitions - start), start)
        for cell in sorted(cells, key=lambda cell: -cell.sentences * cell.seeds)
        for start in range(0, repetitions, part)
    ]
    found = {cell: Series() for cell in cells}
    with multiprocessing.Pool(processes) as pool:
        for (cell, _, _), one in zip(jobs, pool.imap(series, jobs), strict=True):
            total = found[cell]
            for name, value in vars(one).items():
                setattr(total, name, getattr(total, name) + value)
    return found


def tables(repetitions: int, processes: int) -> Iterator[str]:
    """Yield the tables and what they are of."""
    alone = Cell(10, 0.010, 1)
    equal = [
        replace(alone, seeds=seeds, spread=spread)
        for seeds, spread in itertools.product(SEEDS, (*SPREADS, OF_SEEDS_ALONE))
    ]
    several = [replace(alone, spread=spread, sentences=10) for spread in SPREADS]
    at_margin = [
        replace(alone, spread=spread, effect=-MARGIN, margin=MARGIN)
        for spread in (*SPREADS, OF_SEEDS_ALONE)
    ]
    gaining = [
        replace(alone, spread=spread, effect=effect)
        for spread, effect in itertools.product(SPREADS, (0.01, 0.02, 0.04))
    ]
    of_equal = MORE * repetitions
    found = run_cells(equal, of_equal, processes)
    found |= run_cells([*several, *at_margin, *gaining], repetitions, processes)
    yield (
        f"Series of equal methods, {of_equal:,} a row, rates in percent with their exact 95 % "
        "intervals: how often the primary contrast is told apart at any look, and how often its "
        "p-value is 5 % or less at any of the same looks. Differences spread over seeds as the "
        "second column says; the images add a standard error of 0.35 points, which all looks share."
    )
    yield table(
        ["planned seeds", "spread, points", "told by the plan", "p of 5 % at any look"],
        [
            [
                str(cell.seeds),
                points(cell.spread),
                rate(found[cell].apart, of_equal),
                rate(found[cell].naive, of_equal),
            ]
            for cell in equal
        ],
    )
    yield (
        "The same with 10 contrasts, the primary one among them, and 10 planned seeds, "
        f"{repetitions:,} a row as in what follows: how often any of the others is told apart "
        "where the series ends."
    )
    yield table(
        ["spread, points", "primary", "others"],
        [
            [
                points(cell.spread),
                rate(found[cell].apart, repetitions),
                rate(found[cell].others, repetitions),
            ]
            for cell in several
        ],
    )
    yield (
        f"10 planned seeds and a margin of {points(MARGIN)} points, by which `ema` truly is worse: "
        "how often it is called no worse by that much or more."
    )
    yield table(
        ["spread, points", "no worse, falsely"],
        [[points(cell.spread), rate(found[cell].alike, repetitions)] for cell in at_margin],
    )
    yield (
        "10 planned seeds, `ema` truly better: how often that is told, after how many seeds a "
        "series ends on average, and how many times the true gain the claimed one is."
    )
    yield table(
        ["spread, points", "gain, points", "told", "seeds", "claimed / true"],
        [
            [
                points(cell.spread),
                points(cell.effect),
                rate(found[cell].apart, repetitions),
                f"{np.mean(found[cell].seeds):.1f}",
                f"{np.mean(found[cell].gains) / cell.effect:.1f}" if found[cell].gains else "–",
            ]
            for cell in gaining
        ],
    )
    yield "Nominal levels of the looks after 3, 4, ... seeds, in percent, by planned seeds."
    yield table(
        ["planned seeds", "levels"],
        [
            [str(seeds), ", ".join(f"{100 * level:.2g}" for level in nominal_levels(seeds, ALPHA))]
            for seeds in range(FIRST_LOOK, 11)
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    text = "\n\n".join(tables(args.repetitions, args.processes))
    publish("sequential", "Seeds until told", text)


if __name__ == "__main__":
    main()
