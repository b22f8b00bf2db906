"""How often comparisons claim what is not so, and what they find: `docs/statistics.md`.

    python benchmarks/error_rates.py [--repetitions 2000] [--processes 2]
    python benchmarks/error_rates.py --real DIR

Methods are made equal, or unequal by a known amount, and go through the product's own functions:
runs as `qatval.analysis.runs` loads them, `qatval.analysis.comparison.findings` of their group,
`qatval.analysis.family.judge`. That is `compare` without the words, and every cell begins with
comparisons by `compare` itself that have to agree. With ``--real`` one method is trained on ten
seeds of the embedded data, which takes ten minutes or more, and its runs are set against each
other under two names.

Each method has a value per seed, and every image an effect on every method that all seeds share:
what chance the seeds add to a difference is the spread in the tables, and the images add a
standard error of 0.35 points for 128 images. Resamples are bootstrapped from these image effects.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from measure import provenance, table
from qatval.analysis.claims import PairedDifference
from qatval.analysis.collapses import clopper_pearson
from qatval.analysis.comparability import groups
from qatval.analysis.comparison import Findings, compare, findings
from qatval.analysis.document import Group
from qatval.analysis.effects import paired_differences
from qatval.analysis.family import Finding, Verdict, judge
from qatval.analysis.intervals import ALPHA, mean_contrast
from qatval.analysis.power import Design, images_needed, seeds_needed, smallest_effect
from qatval.analysis.runs import LoadedRun, collect
from qatval.testing import build_summary, loaded

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
MARK = "<!-- {what} {name}: benchmarks/error_rates.py writes it -->"

IMAGES, RESAMPLES = 128, 200
IMAGE_ERROR = 0.0035
SPREADS = (0.005, 0.010, 0.016)
SEEDS = (3, 4, 5, 7, 10)
FAMILIES = {
    1: ("baseline", "ema"),
    10: ("baseline", "ema", "ema+qc", "dampen", "dampen+ema", "freeze", "qc"),
    35: (
        *("baseline", "ema", "ema+qc", "dampen", "dampen+ema", "dampen+ema+qc"),
        *("freeze", "freeze+ema", "freeze+ema+qc", "fp32", "fp32+ema", "fp32+ema+qc"),
        *("ema+bn", "dampen+ema+bn", "freeze+ema+bn", "ptq"),
    ),
}
CHECKED = 5
MARGIN = 0.005
# every run is resampled alike
WEIGHTS = np.random.default_rng(0).multinomial(IMAGES, [1 / IMAGES] * IMAGES, RESAMPLES) / IMAGES


@dataclass(frozen=True)
class Cell:
    """Comparisons of one kind.

    Attributes:
        seeds: How many each method is trained on.
        spread: Standard deviation of a difference over seeds, in mAP.
        sentences: How many a comparison has, a key of `FAMILIES`.
        effect: What is added to ``ema``.
        collapse: Which share of runs collapses.
        primary: Whether the runs declare ``ema`` against ``baseline``.
        margin: Against which equivalence is tested.
    """

    seeds: int
    spread: float
    sentences: int
    effect: float = 0.0
    collapse: float = 0.0
    primary: bool = False
    margin: float | None = None


@dataclass
class Counts:
    """How many of a cell's comparisons did what."""

    comparisons: int = 0
    covered: int = 0  # the interval of ema against baseline has 0
    excluding: int = 0  # a 95 % interval, not corrected, excludes 0
    claiming: int = 0  # something is told apart, the primary contrast not counted
    primary: int = 0  # the primary contrast is told apart
    alike: int = 0  # ema is shown to be no worse than the margin
    gains: list[float] = field(default_factory=list)  # what ema is claimed to gain


def simulated(cell: Cell, runs: Sequence[LoadedRun], draw: np.random.Generator) -> list[LoadedRun]:
    """Return the runs with values of their own; `runs` are by method, then by seed."""
    names = FAMILIES[cell.sentences]
    of_images = draw.normal(0, IMAGE_ERROR * math.sqrt(IMAGES / 2), (len(names), IMAGES))
    resampled = of_images @ WEIGHTS.T
    of_seeds = draw.normal(0, cell.spread / math.sqrt(2), (len(names), cell.seeds))
    collapsed = draw.random((len(names), cell.seeds)) < cell.collapse
    found = []
    for position, run in enumerate(runs):
        method, seed = divmod(position, cell.seeds)
        value = 0.6 + of_seeds[method, seed] + (cell.effect if names[method] == "ema" else 0.0)
        final = value + of_images[method].mean()
        if collapsed[method, seed]:
            final *= 0.1
        metrics = run.summary.metrics
        assert metrics.bootstrap is not None
        values = tuple((resampled[method] + value).tolist())
        bootstrap = replace(metrics.bootstrap, values=values)
        metrics = replace(metrics, final_value=float(final), bootstrap=bootstrap)
        summary = replace(
            run.summary,
            metrics=metrics,
            stability=replace(run.summary.stability, collapsed=bool(collapsed[method, seed])),
        )
        found.append(LoadedRun(run.root, summary, run.recorded))
    return found


def counted(job: tuple[Cell, int, int]) -> Counts:
    """Count what comparisons of a cell do; the job is the cell, how many, and where to begin."""
    cell, repetitions, start = job
    primary = {"primary": {"method": "ema", "reference": "baseline"}} if cell.primary else {}
    runs = [
        loaded(build_summary(method, seed, (0.6, 0.6, 0.6), resamples=2, changes=primary))
        for method in FAMILIES[cell.sentences]
        for seed in range(cell.seeds)
    ]
    group = groups(runs)[0]
    order = [next(i for i, run in enumerate(runs) if run is member) for member in group.runs]
    counts = Counts()
    for repetition in range(start, start + repetitions):
        key = (repetition, cell.seeds, round(1e4 * cell.spread), cell.sentences)
        drawn = simulated(cell, runs, np.random.default_rng(key))
        found = findings(group._replace(runs=[drawn[i] for i in order]), cell.margin)
        every = list(found.all())
        verdicts = judge(every)
        told = [verdict for verdict in verdicts.values() if verdict.tells]
        if repetition < CHECKED:
            _check(compare(drawn, margin=cell.margin).groups[0], found, verdicts)
        counts.comparisons += 1
        counts.excluding += any(
            one.test is not None and one.test.p_values[0] <= ALPHA for one in every
        )
        counts.claiming += any(verdict.family != "primary" for verdict in told)
        counts.primary += any(verdict.family == "primary" for verdict in told)
        if not cell.collapse:
            first = found.differences[0]
            _count_first(counts, first, verdicts[first])
    return counts


def _count_first(counts: Counts, finding: Finding[PairedDifference], verdict: Verdict) -> None:
    """Count what is said of ema against baseline, which every family has first."""
    assert finding.test is not None
    no_difference, *margins = finding.test.p_values
    counts.covered += no_difference > ALPHA
    counts.alike += bool(margins) and verdict.p_values[1] <= ALPHA
    if verdict.tells and (said := finding.say(verdict)).mean > 0:
        assert (said.method, said.reference) == ("ema", "baseline")
        counts.gains.append(said.mean)


def _check(group: Group, found: Findings, verdicts: Mapping[Finding[object], Verdict]) -> None:
    """Hold what is counted to what `compare` says."""
    for entries, ours in (
        (group.differences, found.differences),
        (group.net_effects, found.net_effects),
        (group.collapse_differences, found.collapse_differences),
    ):
        own = [finding in verdicts and verdicts[finding].tells for finding in ours]
        assert [entry.tells for entry in entries] == own, "compare says something else"


def rate(count: int, of: int) -> str:
    """Write a rate in percent with its exact 95 % interval."""
    low, high = clopper_pearson(count, of)
    return f"{100 * count / of:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def points(value: float) -> str:
    """Write a difference of mAP in points."""
    return f"{100 * value:.1f}"


def run_cells(cells: Sequence[Cell], repetitions: int, processes: int) -> dict[Cell, Counts]:
    """Return the counts of cells; the processes take parts of each."""
    part = max(1, repetitions // 8)
    jobs = [
        (cell, min(part, repetitions - start), start)
        for cell in sorted(cells, key=lambda cell: -cell.sentences * cell.seeds)
        for start in range(0, repetitions, part)
    ]
    found = {cell: Counts() for cell in cells}
    with multiprocessing.Pool(processes) as pool:
        for (cell, _, _), one in zip(jobs, pool.imap(counted, jobs), strict=True):
            total = found[cell]
            for name, value in vars(one).items():
                setattr(total, name, getattr(total, name) + value)
    return found


def error_tables(repetitions: int, processes: int) -> Iterator[str]:
    """Yield the tables that take a simulation, and what they are of."""
    equal = [
        Cell(seeds, spread, sentences)
        for sentences, spread, seeds in itertools.product(FAMILIES, SPREADS, SEEDS)
    ]
    declared = [Cell(seeds, 0.010, 10, primary=True) for seeds in SEEDS]
    collapsing = [
        Cell(seeds, 0.010, 10, collapse=share) for seeds in (5, 10) for share in (0.2, 0.5)
    ]
    at_margin = [
        Cell(seeds, spread, 1, effect=-MARGIN, margin=MARGIN)
        for seeds in (3, 10)
        for spread in SPREADS
    ]
    gaining = [Cell(seeds, spread, 1, effect=0.005) for seeds in (3, 10) for spread in SPREADS]
    found = run_cells(
        [*equal, *declared, *collapsing, *at_margin, *gaining], repetitions, processes
    )
    yield (
        f"Equal methods, {repetitions:,} comparisons a row, rates in percent with their exact 95 % "
        "intervals. Covered: how often the interval of `ema` against `baseline` holds the true 0. "
        "Uncorrected: comparisons in which a 95 % interval excludes 0. False claims: comparisons "
        "that tell anything apart."
    )
    yield table(
        ["sentences", "spread, points", "seeds", "covered", "uncorrected", "false claims"],
        [
            [
                str(cell.sentences),
                points(cell.spread),
                str(cell.seeds),
                rate(found[cell].covered, repetitions),
                rate(found[cell].excluding, repetitions),
                rate(found[cell].claiming, repetitions),
            ]
            for cell in equal
        ],
    )
    yield (
        "The same with 10 sentences, a spread of 1.0 points, and `ema` against `baseline` declared "
        "as the primary contrast: how often that is claimed, and how often any other is."
    )
    yield table(
        ["seeds", "primary", "others"],
        [
            [
                str(c.seeds),
                rate(found[c].primary, repetitions),
                rate(found[c].claiming, repetitions),
            ]
            for c in declared
        ],
    )
    yield (
        "The same where runs of every method collapse equally often: comparisons that tell "
        "collapse rates or values apart."
    )
    yield table(
        ["seeds", "collapse, %", "false claims"],
        [
            [str(c.seeds), f"{100 * c.collapse:.0f}", rate(found[c].claiming, repetitions)]
            for c in collapsing
        ],
    )
    yield (
        f"`ema` truly worse than `baseline` by {points(MARGIN)} points: how often it is called no "
        "worse by that much or more."
    )
    yield table(
        ["spread, points", "seeds", "no worse, falsely"],
        [[points(c.spread), str(c.seeds), rate(found[c].alike, repetitions)] for c in at_margin],
    )
    yield (
        "`ema` truly better by 0.5 points, one sentence: how often that is found, and how many "
        "times the true gain the claimed one is, on average."
    )
    yield table(
        ["spread, points", "seeds", "found", "claimed / true"],
        [
            [points(c.spread), str(c.seeds), rate(len(gains), repetitions), _times(gains, c.effect)]
            for c in gaining
            for gains in [found[c].gains]
        ],
    )


def _times(gains: Sequence[float], effect: float) -> str:
    return f"{sum(gains) / len(gains) / effect:.1f}" if gains else "–"


def looking_table(repetitions: int) -> Iterator[str]:
    """Yield how often equal methods are told apart by who looks after every further seed."""
    first, last = SEEDS[0], SEEDS[-1]
    draw = np.random.default_rng(1)
    rows = []
    for spread in SPREADS:
        stopped = 0
        for _ in range(repetitions):
            of_images = draw.normal(0, IMAGE_ERROR * math.sqrt(IMAGES), IMAGES)
            value = draw.normal(0, spread, (last, 1)) + of_images.mean()
            resampled = value - of_images.mean() + WEIGHTS @ of_images
            seen = np.hstack([value, resampled])
            stopped += any(
                mean_contrast(seen[:seeds], IMAGES).excludes_zero
                for seeds in range(first, last + 1)
            )
        rows.append([points(spread), rate(stopped, repetitions)])
    yield (
        f"One sentence about equal methods, compared again after every seed from {first} to {last} "
        "until it claims something: how often it does."
    )
    yield table(["spread, points", "false claims"], rows)


def power_table() -> Iterator[str]:
    """Yield what is found with 80 % power, by the product's functions."""
    yield (
        "The smallest effect that is found with 80 % power, in points, on 128 images (standard "
        "error of the images 0.35 points); and, for one point, the seeds that find it on these "
        "images and the images that find it with these seeds."
    )
    rows = []
    for spread, sentences, seeds in itertools.product(SPREADS, FAMILIES, (2, *SEEDS)):
        design = Design(seeds, IMAGES, spread**2, IMAGE_ERROR**2 * IMAGES)
        level = ALPHA / sentences
        needed = (needs(design, level, 0.01) for needs in (seeds_needed, images_needed))
        row = [points(spread), str(sentences), str(seeds), points(smallest_effect(design, level))]
        rows.append(row + ["none" if number is None else f"{number:,}" for number in needed])
    yield table(
        ["spread, points", "sentences", "seeds", "finds", "seeds for 1.0", "images for 1.0"], rows
    )


def train(folder: Path, seeds: int) -> None:
    """Train the baseline on the embedded data, a seed after another; what is there stays."""
    from qatval.core.progress import Progress
    from qatval.data.shapes import draw_dataset
    from qatval.run import runner
    from qatval.run.configuration import configure

    draw_dataset(folder / "shapes")
    for seed in range(seeds):
        root = folder / f"seed{seed}"
        if (root / "run_summary.json").exists():
            continue
        settled = configure(
            variant="yolo10n",
            methods=["baseline"],
            profile="smoke",
            run_root=root,
            coco_root=folder / "shapes",
            seed=seed,
            cache_dir=folder / "cache",
        )
        with Progress(f"seed {seed}") as progress:
            runner.run(settled, progress)


def real(folder: Path) -> Iterator[str]:
    """Yield what comparisons of one method with itself say, over every split of its seeds."""
    runs, _ = collect([folder])
    runs = sorted((run for run in runs if run.completed), key=lambda run: run.seed)
    half = len(runs) // 2
    finals = [run.final for run in runs if run.final is not None]
    told, errors, spreads = [], [], []
    draw = np.random.default_rng(0)
    # a half and its complement are one split: the first run is always in the first half
    for others in itertools.combinations(range(1, len(runs)), half - 1):
        first = [0, *others]
        second = [number for number in range(len(runs)) if number not in first]
        second = draw.permutation(second)[:half].tolist()  # no seed belongs to another
        named = [
            _as(runs[number], name, seed)
            for name, numbers in (("baseline", first), ("ema", second))
            for seed, number in enumerate(numbers)
        ]
        (finding,) = paired_differences(named, [("ema", "baseline")])
        said = finding.say(judge([finding])[finding])
        assert said.power is not None
        shares = said.power.seeds_share
        assert shares
        told.append(said.tells)
        differences = np.array([pair.difference for pair in said.pairs])
        spreads.append(float(differences.std(ddof=1)))
        errors.append(spreads[-1] / math.sqrt(half) * math.sqrt((1 - shares) / shares))
    yield (
        f"{len(runs)} trainings of `baseline` on the embedded data (smoke profile, seeds 0 to "
        f"{len(runs) - 1}), final mAP {min(finals):.4f} to {max(finals):.4f}, standard deviation "
        f"{100 * float(np.std(finals, ddof=1)):.2f} points. Of the {len(told)} ways to split them "
        f"into two methods of {half} seeds, {sum(told)} are told apart at 5 % "
        f"({sum(told) / len(told):.1%}; the splits are of the same runs, so this is no rate of "
        "independent comparisons). A difference spreads "
        f"{100 * float(np.median(spreads)):.2f} points over seeds (median), and the images add a "
        f"standard error of {100 * float(np.median(errors)):.2f} points."
    )


def _as(run: LoadedRun, method: str, seed: int) -> LoadedRun:
    """Return a run under another method's name and another seed."""
    summary = replace(
        run.summary,
        method=replace(run.summary.method, variant=method),
        training=replace(run.summary.training, seed=seed, trajectory=f"{method} {seed}"),
    )
    return LoadedRun(run.root, summary, run.recorded)


def write(name: str, blocks: Iterator[str]) -> None:
    """Put a part between its marks into the page, and print it."""
    begin, end = (MARK.format(what=what, name=name) for what in ("begin", "end"))
    text = "\n\n".join([*blocks, provenance()])
    page = PAGE.read_text("utf-8")
    above, rest = page.split(begin)
    PAGE.write_text(f"{above}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}", "utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--real", type=Path, metavar="DIR", help="train there, and split that")
    parser.add_argument("--seeds", type=int, default=10, help="of --real")
    args = parser.parse_args()
    if args.real:
        train(args.real, args.seeds)
        write("real", real(args.real))
    else:
        write("power", power_table())
        write("looking", looking_table(args.repetitions))
        write("errors", error_tables(args.repetitions, args.processes))


if __name__ == "__main__":
    main()
