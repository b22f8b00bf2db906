"""Whether the methods work, net of their controls: every method, W4 and W3, five seeds.

    python benchmarks/study.py [--out runs/study] [--seeds 0,1,2,3,4] [--jobs 2]

Runs everything on the embedded data (about an hour on two cores), compares it with ``qatval``'s
own comparison and writes ``docs/study.md`` from that. Two schedules: the profile's own, whose
learning rate decays, with every method; and the same with a constant learning rate, where averaging
has something to average, with the methods under test. Finished runs are not run again, so an
interrupted study goes on where it was; with everything there it only writes the document.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from measure import REPOSITORY, provenance
from qatval.cli.options import positive, seeds
from qatval.comparison import compare
from qatval.environment import available_cores, prepare_process
from qatval.methods import method, method_names, with_controls
from qatval.record import SUMMARY_NAME, load_summary
from qatval.report.comparison import write_comparison
from qatval.runs import collect
from study_text import SCHEDULES, Cost, render

PRECISIONS = {
    f"w{bits} {scale}": {"weight_bit_width": bits, "scale": scale}
    for bits in (4, 3)
    for scale in ("per-tensor", "per-channel")
}
EVERY_METHOD = with_controls(
    [
        *method_names(),
        *("qc", "dampen", "dampen+ema", "dampen+ema+qc", "freeze", "freeze+ema", "freeze+ema+qc"),
    ]
)
FLOAT = tuple(name for name in EVERY_METHOD if not method(name).quantized)


@dataclass(frozen=True)
class Part:
    """Runs of one seed, precision and schedule, made by one process."""

    schedule: str
    precision: str
    seed: int
    methods: tuple[str, ...]
    root: Path
    data: Path

    @property
    def roots(self) -> list[Path]:
        return [self.root / method for method in self.methods]

    @property
    def done(self) -> bool:
        found = [root for root in self.roots if (root / SUMMARY_NAME).exists()]
        return len(found) == len(self.roots) and all(
            load_summary(root)["status"] != "incomplete" for root in found
        )


def parts(out: Path, data: Path, numbers: Sequence[int]) -> list[Part]:
    """List what is run. The FP32 controls of a seed serve all precisions, so they run once."""
    found = []
    for seed in numbers:
        for precision in PRECISIONS:
            first = precision == "w4 per-tensor"
            methods = tuple(m for m in EVERY_METHOD if first or m not in FLOAT)
            root = out / "decayed" / f"{precision.replace(' ', '-')}-seed{seed}"
            found.append(Part("decayed", precision, seed, methods, root, data))
        for precision in ("w4 per-tensor", "w3 per-tensor"):
            every = with_controls(method_names())
            first = precision == "w4 per-tensor"
            methods = tuple(m for m in every if first or m not in FLOAT)
            root = out / "constant" / f"{precision.replace(' ', '-')}-seed{seed}"
            found.append(Part("constant", precision, seed, methods, root, data))
    return found


def run(part: Part) -> float:
    """Run a part and return how long it took."""
    from qatval import runner
    from qatval.progress import Progress

    started = time.monotonic()
    config = runner.configure(
        variant="yolo10n",
        methods=part.methods,
        profile="smoke",
        run_root=part.root,
        coco_root=part.data,
        seed=part.seed,
        precision=PRECISIONS[part.precision],
        device="cpu",
        cache_dir=part.data.parent / "cache",
        overwrite=True,
    )
    if part.schedule == "constant":
        overrides = {**config.profile.overrides, "lrf": 1.0}
        profile = dataclasses.replace(
            config.profile, name=f"{config.profile.name}-constant", overrides=overrides
        )
        config = dataclasses.replace(config, profile=profile)
    runner.run(config, Progress("", quiet=True))
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "study")
    parser.add_argument("--seeds", type=seeds, default=(0, 1, 2, 3, 4))
    parser.add_argument("--jobs", type=positive, default=available_cores())
    args = parser.parse_args()
    os.chdir(REPOSITORY)  # checkpoints are named relative to it
    out: Path = args.out.resolve()
    os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // args.jobs))
    prepare_process()
    from qatval.data.shapes import draw_dataset

    draw_dataset(out / "shapes")
    wanted = parts(out, out / "shapes", args.seeds)
    missing = [part for part in wanted if not part.done]
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for number, (part, took) in enumerate(zip(missing, pool.map(run, missing), strict=True), 1):
            minutes = (time.monotonic() - started) / 60
            print(
                f"{number}/{len(missing)} {part.schedule} {part.precision} seed {part.seed}: "
                f"{took:.0f} s, {minutes:.0f} min so far",
                flush=True,
            )
    print(write_study(out, args.jobs))


def write_study(out: Path, jobs: int) -> Path:
    """Compare what was run, schedule by schedule, and write the document."""
    documents, every = {}, []
    for schedule in SCHEDULES:
        runs, unreadable = collect([out / schedule])
        document = compare(runs, unreadable)
        write_comparison(document, runs, out / schedule / "comparison.json")
        documents[schedule] = document
        every += [run for run in runs if run.completed]
    trained = [run for run in every if run.trajectory is not None]
    seconds = {run.trajectory: run.summary["timings"]["training"] for run in trained}
    # A part's stages follow each other; what a run waited for others is theirs.
    scoring = sum(
        took
        for run in every
        for stage, took in run.summary["timings"].items()
        if stage
        in (
            *("freezing", "rounding", "BatchNorm drift", "BatchNorm statistics", "correction"),
            *("final evaluation", "second protocol"),
        )
    )
    cost = Cost(
        runs=len(every),
        trainings=len(seconds),
        apart=len(trained),
        hours=(sum(seconds.values()) + scoring) / 3600,
        training_hours=sum(seconds.values()) / 3600,
        apart_hours=sum(run.summary["timings"]["training"] for run in trained) / 3600,
        jobs=jobs,
    )
    path = REPOSITORY / "docs" / "study.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(render(documents, cost, provenance()), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
