"""What a study costs beside its runs: 1,000 jobs by the controller and the engine of a machine.

    python benchmarks/scale.py [--jobs 1000] [--length 0.2] [--real 0]

A process that writes the same files without torch stands in for training, as 1,000 trainings would
take hours; ``--real N`` trains N jobs of seconds by the same controller. Overhead is what the whole
took beyond what its processes did, by their own clocks, on all places. Status is the command
``qatval study status``, a process of its own, over the finished study.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import publish, spread, table
from qatval.core.environment import peak_resident_mb
from qatval.core.summary import write_summary
from qatval.data.shapes import draw_dataset
from qatval.run.study.controller import Controller
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.engines.local import LocalEngine
from qatval.run.study.plan import Job, Plan, write_plan
from qatval.run.study.watching import watching
from qatval.testing import build_summary

STATUS = "import sys; from qatval.cli.main import main; sys.exit(main())"
STATUS_GOAL_S = 2.0
TINY = {"epochs": 1, "imgsz": 64, "train_images": 16, "val_images": 8}

STAND_IN = """
import json, os, shutil, socket, sys, time
started = time.time()
out, job, length, template = sys.argv[1:]
folder, root = f"{out}/jobs/{job}", f"{out}/runs/{job}"
def say(standing):
    state = {"standing": standing, "attempt": 1, "host": socket.gethostname(), "pid": os.getpid(),
             "started_at": "2026-01-01T00:00:00+00:00", "seconds": time.time() - started}
    with open(f"{folder}/.state", "w") as file:
        json.dump(state, file)
    os.replace(f"{folder}/.state", f"{folder}/state.json")
say("running")
time.sleep(float(length))
shutil.copytree(template, root)
say("done")
"""


class StandIn(LocalEngine):
    """Runs what writes the files of a job in the place of the job."""

    length: float
    template: Path

    def place(self, attempts: Sequence[Attempt]) -> None:
        more = (str(self.length), str(self.template))
        begun = (sys.executable, "-S", "-c", STAND_IN)
        super().place(
            [dataclasses.replace(it, command=(*begun, *it.command[-2:], *more)) for it in attempts]
        )


def carried_out(plan: Plan, out: Path, engine: LocalEngine) -> list[str]:
    """Carry a study out; return the row of its table."""
    stream, cpu, started = io.StringIO(), time.process_time(), time.perf_counter()
    with Controller(plan, out, engine) as controller:
        write_plan(plan, out)
        with watching(stream) as show:
            entries = controller.run(show)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert all(entry.word == "done" for entry in entries), stream.getvalue()
    worked = sum(entry.state.seconds for entry in entries if entry.state is not None)
    number, places = len(entries), len(engine.places)
    return [
        f"{number:,}",
        f"{places}",
        f"{wall:.1f}",
        f"{worked / number:.2f}",
        f"{1000 * (wall * places - worked) / number:.0f}",
        f"{cpu:.2f}",
        f"{1000 * cpu / number:.2f}",
        f"{peak_resident_mb()}",
        spread([status_seconds(out) for _ in range(5)]),
    ]


def status_seconds(out: Path) -> float:
    command = [sys.executable, "-c", STATUS, "study", "status", str(out)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def plan_of(number: int, work: Path) -> Plan:
    settings = {"variant": "yolo10n", "profile": "smoke", "device": "cpu", **TINY}
    settings["coco_root"] = str(work / "shapes")
    jobs = [Job(f"tiny/seed{n}/baseline", ("baseline",), n, settings) for n in range(number)]
    return Plan("2026-01-01T00:00:00+00:00", str(Path.cwd()), Resources(), tuple(jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--length", type=float, default=0.2, help="of a stand-in, in seconds")
    parser.add_argument("--real", type=int, default=0, help="jobs that are trained as well")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["QATVAL_CACHE_DIR"] = os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        draw_dataset(work / "shapes")
        write_summary(work / "template", build_summary("baseline", resamples=500))
        engine = StandIn(Resources())
        engine.length, engine.template = args.length, work / "template"
        plan = plan_of(args.jobs, work)
        rows.append(["stand-in", *carried_out(plan, work / "stand-in", engine)])
        if args.real:
            plan = plan_of(args.real, work)
            rows.append(["trained", *carried_out(plan, work / "real", LocalEngine(Resources()))])
    header = ["jobs", "number", "side by side", "wall, s", "a job, s", "beside it, ms"]
    header += ["controller, CPU s", "a job, CPU ms", "peak, MiB", "status, s"]
    publish(
        "scale",
        "A study of many jobs",
        "`python benchmarks/scale.py`: the controller, the engine of a machine and the lines that "
        "are shown, in one process. Stand-ins are processes that write the files of a job without "
        f"torch and take {args.length:g} s; trained jobs are yolo10n at 64 px on 16 images, one "
        "epoch. *A job* is what its process took by its own clock; *beside it* is what the whole "
        "took beyond that on all places, the start of the process included. Status is the median "
        f"(quartiles) of five; its goal is {STATUS_GOAL_S:g} s for 1,000 jobs.\n\n"
        + table(header, rows),
    )


if __name__ == "__main__":
    main()
