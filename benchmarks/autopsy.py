"""Whether autopsies name what broke a training, and nothing where nothing broke; what they cost.

    python benchmarks/autopsy.py [--seeds 3] [--stable 20]

The trainings that fail for a known cause are those of ``tests/validation/failures.py``, each with
several seeds. The stable ones are the same training with nothing wrong, its raw and its averaged
weights. Of these the share of the run is measured that all of it takes: looking for falls after
every epoch, and judging the run. Embedded data, yolo10n.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from measure import REPOSITORY, publish, table
from qatval.core.environment import prepare_process
from qatval.core.option_types import positive
from qatval.core.summary import RunSummary

sys.path.insert(0, str(REPOSITORY / "tests" / "validation"))

STABLE_METHODS = ("baseline", "ema")


@contextmanager
def watching(places: Sequence[tuple[Any, str]]) -> Iterator[list[float]]:
    """Collect the seconds that each call of some functions takes, by owner and name."""
    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                seconds.append(time.perf_counter() - started)

        return call

    with ExitStack() as patched:
        for owner, name in places:
            function = timed(getattr(owner, name))
            patched.enter_context(mock.patch.object(owner, name, function))
        yield seconds


def failing(seeds: int, folder: Path, data: Path) -> str:
    """Run every training that fails and return a table of what was named."""
    from failures import FAILURES, run

    rows = []
    for name, failure in FAILURES.items():
        for seed in range(seeds):
            (summary,) = run(failure, seed, folder / f"{name} {seed}", data)
            found = summary.autopsies
            named = {(one.cause, one.layer) for one in found}
            right = found and {cause for cause, _ in named} == {failure.cause}
            if failure.layer is not None:
                right = right and {layer for _, layer in named} == {failure.layer}
            shares = [one.restored for one in found if one.restored is not None]
            probed = [len(one.probes) for one in found]
            rows.append(
                [
                    name,
                    str(seed),
                    "; ".join(sorted(f"{c or 'not found'} {n or ''}".strip() for c, n in named)),
                    "yes" if right else "**no**",
                    ", ".join(f"{share:.2f}" for share in shares) or "–",
                    ", ".join(map(str, probed)),
                    f"{(summary.timings or {}).get('autopsy', 0.0) / max(len(found), 1):.1f}",
                ]
            )
            print(*rows[-1], sep=" | ", flush=True)
    header = ["training", "seed", "named", "rightly", "restored", "probes", "s an autopsy"]
    return table(header, rows)


def stable(runs: int, folder: Path, data: Path) -> str:
    """Run the training with nothing wrong and return what was named and what looking took."""
    from failures import STABLE, run

    from qatval.core import trajectory
    from qatval.run import delivery
    from qatval.train.recording import EpochLog

    places = [(EpochLog, "falls"), (trajectory, "of_run"), (delivery, "has_fallen")]
    shares, named, fell = [], 0, 0
    for seed in range(runs):
        with watching(places) as seconds:
            found: list[RunSummary] = run(STABLE, seed, folder / str(seed), data, STABLE_METHODS)
        total = sum((summary.timings or {})["total"] for summary in found)
        shares.append(sum(seconds) / total)
        named += sum(one.cause is not None for summary in found for one in summary.autopsies)
        fell += sum(len(summary.autopsies) for summary in found)
        print(seed, [s.metrics.final_value for s in found], f"{shares[-1]:.2e}", flush=True)
    return (
        f"{runs} stable trainings, {' and '.join(STABLE_METHODS)} of each: {fell} autopsies, "
        f"{named} causes named. Looking for falls and judging took {statistics.median(shares):.1e} "
        f"of a run's time (at most {max(shares):.1e})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=positive, default=3, help="of each training that fails")
    parser.add_argument("--stable", type=positive, default=20, help="trainings that hold")
    args = parser.parse_args()
    prepare_process()
    os.chdir(REPOSITORY)  # checkpoints are named relative to it

    from qatval.data.shapes import draw_dataset

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data" / "shapes"
        draw_dataset(data)
        told = failing(args.seeds, folder / "failing", data)
        held = stable(args.stable, folder / "stable", data)
    publish(
        "autopsy",
        "What autopsies name, and what they cost",
        f"`python benchmarks/autopsy.py --seeds {args.seeds} --stable {args.stable}`: trainings "
        "that fail for a known cause (`tests/validation/failures.py`), a row each; then the same "
        f"training with nothing wrong.\n\n{told}\n\n{held}",
    )


if __name__ == "__main__":
    main()
