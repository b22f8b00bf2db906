"""Runs side by side with a thread each, against one after another with all threads.

    python benchmarks/placement.py [--seeds 2] [--rounds 3] [--profile smoke] [--imgsz PX]

A study of as many trainings as there are seeds, yolo10n on the embedded data, by the command that
users give: from its start to the comparison, subsets in their cache. Which of the two is faster
decides how many threads a study's runs get where it does not say (`qatval.run.study.planning`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import publish, ratio, spread, table
from qatval.core.environment import available_cores
from qatval.data.shapes import draw_dataset

COMMAND = "import sys; from qatval.cli.main import main; sys.exit(main())"
STUDY = """
variants = ["yolo10n"]
methods = ["baseline", "ema"]
seeds = "0..{last}"
dataset = "shapes"
resources = {{ threads = {threads} }}
[trainings.measured]
profile = "{profile}"
"""


def seconds_of(file: Path, out: Path, jobs: int) -> float:
    """Run a study; return how long it took."""
    command = [sys.executable, "-c", COMMAND, "study", str(file), "--out", str(out)]
    started = time.perf_counter()
    subprocess.run([*command, "--jobs", str(jobs)], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--imgsz", type=int)
    args = parser.parse_args()
    cores = available_cores()
    beside = f"{cores} side by side, one thread each"
    after = f"one after another, {cores} threads"
    ways = {beside: (1, cores), after: (cores, 1)}
    took: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["QATVAL_CACHE_DIR"] = str(work / "cache")
        os.environ.pop("OMP_NUM_THREADS", None)
        draw_dataset(work / "shapes")
        for number in range(args.rounds + 1):
            for way, (threads, jobs) in ways.items():
                file = work / f"{threads}.toml"
                given = {"last": args.seeds - 1, "threads": threads, "profile": args.profile}
                size = f"imgsz = {args.imgsz}\n" if args.imgsz else ""
                file.write_text(STUDY.format(**given) + size, encoding="utf-8")
                seconds = seconds_of(file, work / f"{number}-{threads}", jobs)
                if number:  # the first round fills the page cache and the subset cache
                    took[way].append(seconds)
    rows = [[way, spread(took[way]), f"{ratio(took[way], took[after]):.2f}"] for way in ways]
    size = "" if args.imgsz is None else f", {args.imgsz} px"
    publish(
        "placement",
        "Runs side by side",
        f"`python benchmarks/placement.py`: `qatval study` with {args.seeds} trainings of yolo10n "
        f"on the embedded data (profile {args.profile}{size}; `baseline` and `ema` share each), "
        f"from the command to its comparison. Medians of {args.rounds} rounds (quartiles, or "
        "extremes of fewer than four), in turn; ratios are medians of the rounds' ratios.\n\n"
        + table(["", "seconds", "of one after another"], rows),
    )


if __name__ == "__main__":
    main()
