"""Whether the methods work, net of their controls.

    python benchmarks/study.py [--out runs/study] [--seeds 0,1,2,3,4] [--jobs 2]
    python benchmarks/study.py --photographs [--seeds 0,1,2]

On the embedded data (about an hour on two cores): every method, W4 and W3, under two schedules, the
profile's own, whose learning rate decays, and the same with a constant one, where averaging has
something to average. QC has both of its controls there, fresh statistics and the same QC in FP32.
On photographs, in a folder as QATVAL_REAL_DATA names one (about an hour as well): the methods under
test, the teacher and the post-training arms, at 4 bits and with the first and last layers at 8.
Either writes its part of ``docs/study.md`` from ``qatval``'s own comparison, leaves the other as it
is, and keeps the values by seed in ``benchmarks/results/``. Finished runs are not run again, so an
interrupted study goes on where it was; with everything there it only writes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from campaign import Part, carry_out, photographs, real_data
from measure import REPOSITORY, provenance, publish
from qatval.analysis.comparison import compare
from qatval.analysis.runs import LoadedRun, collect
from qatval.core.environment import available_cores
from qatval.core.option_types import positive, seeds
from qatval.core.presets import BatchNorm
from qatval.quant.methods import method, method_names, with_controls
from qatval.report.comparison import write_comparison
from study_text import EMBEDDED, PHOTOGRAPHS, Cost, Section, replaced

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
ON_PHOTOGRAPHS = with_controls([*method_names(), "ema+shift", "distill", "distill+shift"])
RATE = "1e-5"
EPOCHS = 6
DOCUMENT = REPOSITORY / "docs" / "study.md"


def embedded_parts(out: Path, numbers: Sequence[int]) -> list[Part]:
    """List what is run on the embedded data."""
    from qatval.data.shapes import draw_dataset

    draw_dataset(out / "shapes")
    found = []
    for seed in numbers:
        for precision in PRECISIONS:
            found.append(_part(out, "decayed", precision, seed, EVERY_METHOD))
        for precision in ("w4 per-tensor", "w3 per-tensor"):
            every = with_controls(method_names())
            found.append(_part(out, "constant", precision, seed, every))
    return found


def _part(out: Path, schedule: str, precision: str, seed: int, methods: Sequence[str]) -> Part:
    constant = schedule == "constant"
    return Part(
        label=f"{schedule} {precision} seed {seed}",
        root=out / schedule / f"{precision.replace(' ', '-')}-seed{seed}",
        # The FP32 controls of a seed serve all precisions, so they run once.
        methods=tuple(m for m in methods if precision == "w4 per-tensor" or m not in FLOAT),
        seed=seed,
        coco_root=out / "shapes",
        precision=PRECISIONS[precision],
        schedule="constant" if constant else None,
        overrides={"lrf": 1.0} if constant else {},
        options={"profile": "smoke", "device": "cpu"},
    )


def photograph_parts(out: Path, numbers: Sequence[int], folder: Path, device: str) -> list[Part]:
    """List what is run on photographs: every method, then other settings with fewer."""
    coco_root, checkpoint = photographs(folder)
    options = {
        "profile": "short",
        "epochs": EPOCHS,
        "imgsz": 320,
        "checkpoint": checkpoint,
        "device": device,
    }
    boundary = {"boundary_bit_width": 8}
    settings: tuple[tuple[BatchNorm, str, dict[str, Any], Sequence[str]], ...] = (
        ("running", "w4", {}, ON_PHOTOGRAPHS),
        ("anchored", "w4", {}, with_controls(method_names())),
        ("anchored", "w4 boundary 8", boundary, (*method_names(), "ema+bn", "ptq+shift")),
    )
    return [
        Part(
            label=f"{batchnorm} {precision} seed {seed}",
            root=out / batchnorm / f"{precision.replace(' ', '-')}-seed{seed}",
            methods=tuple(methods),
            seed=seed,
            coco_root=coco_root,
            precision=fields,
            schedule=f"rate-{RATE}",
            overrides={"lr0": float(RATE)},
            options={**options, "batchnorm": batchnorm},
        )
        for batchnorm, precision, fields, methods in settings
        for seed in numbers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "study")
    parser.add_argument("--photographs", type=Path, nargs="?", const=real_data(), metavar="DIR")
    parser.add_argument("--seeds", type=seeds)
    parser.add_argument("--jobs", type=positive, default=available_cores())
    parser.add_argument("--device", default="cpu", help="of the photographs")
    args = parser.parse_args()
    os.chdir(REPOSITORY)  # checkpoints are named relative to it
    out: Path = args.out.resolve()
    if args.photographs is None:
        section = EMBEDDED
        wanted = embedded_parts(out, args.seeds or (0, 1, 2, 3, 4))
    else:
        section = PHOTOGRAPHS
        wanted = photograph_parts(out, args.seeds or (0, 1, 2), args.photographs, args.device)
    carry_out(wanted, args.jobs, out / "cache")
    print(write_study(out, section, args.jobs))


def write_study(out: Path, section: Section, jobs: int) -> Path:
    """Compare what was run, schedule by schedule, write the section and keep its values."""
    comparisons, every = {}, []
    for schedule in section.schedules:
        runs, unreadable = collect([out / schedule])
        comparisons[schedule] = compare(runs, unreadable)
        write_comparison(comparisons[schedule], runs, out / schedule / "comparison.json")
        every += [run for run in runs if run.completed]
    trained = [run for run in every if run.trajectory is not None]
    seconds = {run.trajectory: _timings(run)["training"] for run in trained}
    # A part's stages follow each other; what a run waited for others is theirs.
    scoring = sum(
        took
        for run in every
        for stage, took in _timings(run).items()
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
        apart_hours=sum(_timings(run)["training"] for run in trained) / 3600,
        jobs=jobs,
    )
    known = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    DOCUMENT.parent.mkdir(exist_ok=True)
    text = section.render(comparisons, cost, provenance())
    DOCUMENT.write_text(replaced(known, section, text), encoding="utf-8")
    publish(section.name, f"The study's values: {section.title}", section.values(comparisons))
    return DOCUMENT


def _timings(run: LoadedRun) -> dict[str, float]:
    return run.summary.timings or {}


if __name__ == "__main__":
    main()
