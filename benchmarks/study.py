"""Whether the methods work, net of their controls: ``docs/study.md`` from two studies.

    python benchmarks/study.py [--out runs/study] [--jobs 2]
    python benchmarks/study.py --photographs [DIR] [--device cpu]

``study_embedded.toml`` and ``study_photographs.toml`` say what is run and why; each takes about an
hour on two cores. Either writes its part of the document from ``qatval``'s own comparison, leaves
the other as it is, and keeps the values by seed in ``benchmarks/results/``. An interrupted study
goes on where it was; with everything there it only writes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from msgspec.structs import replace

from measure import REPOSITORY, provenance, publish
from photographs import photographs, real_data
from qatval.analysis.comparison import compare
from qatval.analysis.runs import LoadedRun, collect
from qatval.cli.study import carry_out
from qatval.core.environment import prepare_process
from qatval.core.option_types import positive
from qatval.report.comparison import write_comparison
from qatval.run.study.engines.local import LocalEngine
from qatval.run.study.file import load_study
from qatval.run.study.matrix import Study
from qatval.run.study.plan import Plan
from qatval.run.study.planning import planned
from study_text import EMBEDDED, PHOTOGRAPHS, Cost, Section, replaced

DOCUMENT = REPOSITORY / "docs" / "study.md"


def asked_for(section: Section) -> Study:
    """Return the study behind a section."""
    return load_study(Path(__file__).with_name(f"{section.name}.toml"))


def on_photographs(study: Study, folder: Path, device: str) -> Study:
    """Return a study on the photographs, and from the checkpoint, in a folder."""
    coco_root, checkpoint = photographs(folder)
    return replace(
        study,
        dataset=str(coco_root),
        trainings={
            name: replace(schedule, checkpoint=str(checkpoint))
            for name, schedule in study.trainings.items()
        },
        resources={"gpus": 0 if device == "cpu" else 1},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "study")
    parser.add_argument("--photographs", type=Path, nargs="?", const=real_data(), metavar="DIR")
    parser.add_argument("--jobs", type=positive, help="side by side (default: as many as fit)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="of photographs")
    args = parser.parse_args()
    section = EMBEDDED if args.photographs is None else PHOTOGRAPHS
    study = asked_for(section)
    if args.photographs is not None:
        study = on_photographs(study, args.photographs.resolve(), args.device)
    out: Path = args.out.resolve() / section.name
    os.chdir(REPOSITORY)  # checkpoints are named relative to it
    prepare_process()
    plan = planned(study, out, args.jobs)
    engine = LocalEngine(plan.resources, args.jobs)
    carry_out(plan, out, engine)
    print(write_study(plan, out, section, len(engine.places)))


def write_study(plan: Plan, out: Path, section: Section, jobs: int) -> Path:
    """Compare what was run, training by training, write the section and keep its values."""
    comparisons, every = {}, []
    for schedule in section.schedules:
        jobs_of = [job for job in plan.jobs if job.training == schedule]
        runs, unreadable = collect([job.run_root(out) for job in jobs_of])
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
