"""A study on a Slurm cluster that gives it no rest, held to the same study on this machine alone.

``python tests/clusters/slurm.py [FOLDER]``, where ``slurm-wlm`` and ``munge`` are installed. Exit
code 1 if anything differs, 2 if Slurm is not there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from slurm_cluster import Cluster, command, missing
from study_of_six import Diary, standing, start, told, wait, write_study

MORE = """
[slurm]
partition = "work"
"""


def main(folder: Path) -> int:
    """Run both studies; return the exit code."""
    if lacks := missing():
        print(f"no {', '.join(lacks)} here: install slurm-wlm and munge")
        return 2
    os.environ["QATVAL_CACHE_DIR"] = str(folder / "cache")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that daemons end as well
    diary = Diary()
    file, here, there = write_study(folder, MORE), folder / "local", folder / "slurm"
    code = start(file, here).wait()
    diary.add("the study with the local engine", f"exit code {code}")
    with Cluster() as cluster:
        diary.add("munged, slurmctld, two slurmd started", str(cluster.nodes()))
        code = disturbed(cluster, file, there, diary)
    return told(here, there, code, diary, "Slurm")


def disturbed(cluster: Cluster, file: Path, out: Path, diary: Diary) -> int:
    """Run the study on a cluster and disturb it; return the controller's exit code."""
    controller = start(file, out, "--launcher", "slurm")
    try:
        job, task, node = training(out)
        command("scancel", task)
        wait(lambda: state(out, job) == "interrupted", f"{job} to save")
        diary.add(f"scancel {task}, training on {node}", f"{job} saved, {queue(task)}")

        job, task, node = training(out, but=job)
        command("scontrol", "requeue", task)
        wait(lambda: state(out, job) == "interrupted", f"{job} to save")
        diary.add(f"scontrol requeue {task}, training on {node}", f"{job} saved, {queue(task)}")

        job, task, node = training(out, but=job)
        controller.kill()
        controller.wait()
        command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=service")
        diary.add(f"controller SIGKILLed, {node} drained", f"{queue(task)}, {nodes(cluster)}")
        wait(lambda: cluster.nodes()[node] == "drained", f"{node} to be empty")
        diary.add(f"{node} is empty", f"{job} {state(out, job)}, {nodes(cluster)}")

        controller = start(file, out, "--launcher", "slurm")
        job, task, other = training(out)
        diary.add("controller started again", f"{job} trains on {other}")
        command("scancel", "--signal=USR2", task)
        wait(lambda: state(out, job) == "interrupted", f"{job} to save")
        diary.add(f"time limit announced to {task}", f"{job} saved, {queue(task)}")

        command("scontrol", "update", f"NodeName={node}", "State=RESUME")
        job, task, failing = training(out)
        cluster.fail(failing)
        diary.add(f"{failing} SIGKILLed with all on it", f"it trained {job}")
        wait(lambda: "down" in cluster.nodes()[failing], f"{failing} to be missed")
        diary.add(f"{failing} is missed", f"{nodes(cluster)}, {queue(task)}")
        cluster.start(failing)
        code = controller.wait(400)
        diary.add("the study has ended", f"exit code {code}, {nodes(cluster)}")
        return code
    finally:
        if controller.poll() is None:
            controller.kill()
            controller.wait()


def training(out: Path, but: str = "") -> tuple[str, str, str]:
    """Wait until a job trains on the cluster; return its name, its task and its node."""
    found: list[tuple[str, str, str]] = []

    def trains() -> bool:
        record = out / "slurm" / "placed.json"
        tasks = json.loads(record.read_text()) if record.exists() else {}
        rows = command("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i %N").splitlines()
        where = dict(row.split() for row in rows)
        for entry in standing(out):
            name, seen = entry.job.name, entry.state
            early = entry.word == "running" and seen and seen.done and seen.done < 0.6
            if early and name != but and tasks.get(name) in where:
                found.append((name, tasks[name], where[tasks[name]]))
        return bool(found)

    wait(trains, "a job that trains")
    return found[0]


def state(out: Path, job: str) -> str:
    """Return how a job stands, in the word of its entry."""
    return next(entry.word for entry in standing(out) if entry.job.name == job)


def queue(task: str) -> str:
    """Return what Slurm says of a task."""
    row = command("squeue", "-h", "-r", "-t", "all", "-j", task, "-o", "%T %r", check=False)
    return f"task {row.replace(' None', '') or 'gone'}"


def nodes(cluster: Cluster) -> str:
    """Return the nodes' states in a few words."""
    return ", ".join(f"{node} {state}" for node, state in cluster.nodes().items())


if __name__ == "__main__":
    began = time.monotonic()
    place = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="qatval-six-"))
    place.mkdir(parents=True, exist_ok=True)
    result = main(place.resolve())
    print(f"{time.monotonic() - began:.0f} s; all of it is in {place}")
    sys.exit(result)
