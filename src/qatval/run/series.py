"""A series: the same run with one seed after another, to the last or until it is told.

::

    series.json           what is run and how it is to be told, before the first run and for good
    seed0/  seed1/ ...    run root of a seed; with several methods, the folder of their run roots

The same command goes on with a series that was interrupted: seeds that are finished are kept, the
one that was not goes on as a run of its own does. What was planned holds from the first training
on, and a look at what is there decides the same however often it is taken.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from qatval.analysis.runs import collect
from qatval.analysis.sequential import FIRST_LOOK, plan
from qatval.analysis.stopping import Standing, standing
from qatval.core.errors import QatvalError, UsageError
from qatval.core.files import atomic_write, read_regular
from qatval.core.interruption import Interrupted
from qatval.core.progress import Progress
from qatval.core.summary import RunSummary, SeriesPlan, load_summary
from qatval.run import runner
from qatval.run.claim import Claim
from qatval.run.configuration import RunConfig
from qatval.run.folder import is_finished
from qatval.run.record import held
from qatval.run.workspace import difference, flat, is_interrupted

_NAME = "series.json"
_LARGEST = 1_000_000  # bytes


class _Recorded(msgspec.Struct, omit_defaults=True):
    """What a series is, as its folder says."""

    created_at: str
    seeds: tuple[int, ...]
    primary: tuple[str, str]
    settings: dict[str, Any]
    plan: SeriesPlan | None = None

    def asked(self) -> dict[str, Any]:
        """Return all that must be asked for again to go on."""
        return self.settings | flat(
            {
                "seeds": self.seeds,
                "primary": self.primary,
                "until-told": self.plan is not None,
                "margin": self.plan and self.plan.margin,
            }
        )


@dataclass(frozen=True)
class Series:
    """The same run with one seed after another.

    Attributes:
        config: What is run; of its seed and run root only those of `of_seed` are.
        seeds: In this order.
        plan: How it is told before the last seed, None for all seeds whatever they show.
    """

    config: RunConfig
    seeds: tuple[int, ...]
    plan: SeriesPlan | None

    def of_seed(self, seed: int) -> RunConfig:
        """Return the run of one seed."""
        root = self.config.run_root / f"seed{seed}"
        return replace(self.config, seed=seed, run_root=root, series=self.plan)


@dataclass(frozen=True)
class SeedDone:
    """What a series has when a seed of it is finished.

    Attributes:
        number: How many seeds are.
        summaries: The seed's, by method as asked for.
        standing: How its primary contrast stands, None without a plan or before the first look.
    """

    number: int
    seed: int
    summaries: list[RunSummary]
    standing: Standing | None


def series(
    config: RunConfig, seeds: Sequence[int], *, until_told: bool, margin: float | None = None
) -> Series:
    """Settle a series.

    Args:
        config: What is run with each seed; its run root is the folder of the series.
        seeds: At least one, in the order in which they are run.
        until_told: Whether it ends at the look that tells its primary contrast.
        margin: By which the method must not be worse than its reference, in mAP: shown so, it is
            told as well.

    Raises:
        UsageError: If it cannot be told what it is to be run for, or would replace runs.
    """
    if config.overwrite:
        raise UsageError(
            "--overwrite replaces single runs: give a series of --seeds another --run-root"
        )
    if margin is not None and not until_told:
        raise UsageError("--margin is for a series that ends when it is told: add --until-told")
    missing = [name for name in config.primary if name not in [m.name for m in config.methods]]
    if until_told and missing:
        raise UsageError(
            f"--until-told needs both methods of the primary contrast "
            f"{':'.join(config.primary)}: add {' and '.join(missing)} to --method, or name another "
            "contrast with --primary"
        )
    return Series(config, tuple(seeds), plan(seeds, margin) if until_told else None)


def run(asked: Series) -> Iterator[SeedDone]:
    """Run a series, or go on with it; yield each seed as it is finished, those before as well.

    Raises:
        QatvalError: If the folder holds another series or runs that are none of it, and for all
            that `runner.run` does: what is finished is kept.
    """
    with Claim() as claim:
        claim.add(asked.config.run_root)
        _record(asked)
        roots: list[Path] = []
        for number, seed in enumerate(asked.seeds, 1):
            config = asked.of_seed(seed)
            summaries = _finished(config)
            if summaries is None:
                summaries = _run(config)
            roots += [config.root_of(method.name) for method in config.methods]
            stands = None
            if asked.plan is not None and number >= FIRST_LOOK:
                stands = standing(collect(roots)[0], config.primary)
            yield SeedDone(number, seed, summaries, stands)
            if stands is not None and stands.told:
                return


def _run(config: RunConfig) -> list[RunSummary]:
    title = f"{config.variant.name} {config.profile.name} seed {config.seed}"
    try:
        with Progress(title) as shown:
            return runner.run(config, shown)
    except Interrupted as interrupted:  # what begins anew or goes on is this seed alone
        raise Interrupted(f"seed {config.seed}: {interrupted}") from interrupted


def _record(asked: Series) -> None:
    """Record what is asked for before the first run, or hold it to what was recorded then."""
    file = asked.config.run_root / _NAME
    settings = flat(held(asked.config))
    del settings["seed"]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    ours = _Recorded(now, asked.seeds, asked.config.primary, settings, asked.plan)
    recorded = _read(file)
    of_seeds = sorted(asked.config.run_root.glob("seed*"))
    of_methods = [root for folder in of_seeds for root in (folder, *sorted(folder.glob("*")))]
    finished = [root for root in of_methods if is_finished(root)]
    if recorded is None:
        if finished:
            raise QatvalError(
                f"{finished[0]} holds a finished run that is none of a series: give another "
                "--run-root"
            )
    elif other := difference(recorded.asked(), ours.asked()):
        begun = any(map(is_interrupted, of_seeds))
        if finished or (begun and not asked.config.restart):
            remedy = "another --run-root" if finished else "--restart to begin anew"
            raise QatvalError(
                f"{asked.config.run_root} holds a series with another {other}; give the same "
                f"command again to go on, or {remedy}"
            )
    else:
        return
    content = msgspec.json.format(msgspec.json.encode(ours), indent=2)
    atomic_write(file, content)


def _read(file: Path) -> _Recorded | None:
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(
            read_regular(file, _LARGEST, expected="the record of a series"), type=_Recorded
        )
    except ValueError as error:  # msgspec's own are
        raise QatvalError(
            f"{file} is no record of a series ({error}): give another --run-root"
        ) from error


def _finished(config: RunConfig) -> list[RunSummary] | None:
    """Return the summaries of a seed that is finished, None for one that has something to do.

    Raises:
        QatvalError: If a run in its place is none of the series.
    """
    roots = [config.root_of(method.name) for method in config.methods]
    if is_interrupted(config.run_root) or not all(map(is_finished, roots)):
        return None
    summaries = [load_summary(root) for root in roots]
    for root, summary in zip(roots, summaries, strict=True):
        if summary.training.seed != config.seed or summary.series != config.series:
            raise QatvalError(
                f"{root} holds a run that is none of this series: move it away, or give another "
                "--run-root"
            )
    return summaries
