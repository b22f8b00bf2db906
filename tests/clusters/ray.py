"""A study on a Ray cluster that loses its nodes, held to the same study on this machine alone.

``python tests/clusters/ray.py [FOLDER]``, where ``qatval[ray]`` is installed. Exit code 1 if
anything differs, 2 if Ray is not there. Nothing here imports Ray: its name is this script's.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ray_cluster import Cluster
from study_of_six import Diary, standing, start, told, wait, write_study


def main(folder: Path) -> int:
    """Run both studies; return the exit code."""
    try:
        version("ray")
    except PackageNotFoundError:
        print("no Ray here: pip install 'qatval[ray]'")
        return 2
    os.environ["QATVAL_CACHE_DIR"] = str(folder / "cache")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nodes end as well
    diary = Diary()
    file, here, there = write_study(folder), folder / "local", folder / "ray"
    code = start(file, here).wait()
    diary.add("the study with the local engine", f"exit code {code}")
    with Cluster() as cluster:
        os.environ["RAY_ADDRESS"] = cluster.address
        cluster.start("n1")
        diary.add("a head and a node started, each with one place")
        code = disturbed(cluster, file, there, diary)
    return told(here, there, code, diary, "Ray")


def disturbed(cluster: Cluster, file: Path, out: Path, diary: Diary) -> int:
    """Run the study on a cluster and disturb it; return the controller's exit code."""
    controller = start(file, out, "--launcher", "ray")
    try:
        job = training(cluster, out, "n1")
        cluster.lose("n1")
        wait(lambda: state(out, job) == "interrupted", f"{job} to save")
        wait(lambda: cluster.is_gone("n1"), "n1 to be gone")
        diary.add("the raylet of n1 SIGKILLed", f"{job} trained there, saved and ended")

        cluster.start("n2")
        first, second = training(cluster, out, "head"), training(cluster, out, "n2")
        diary.add("n2 started", f"{second} trains there, {first} on the head")
        controller.kill()
        controller.wait()
        wait(lambda: not working(out), "what runs to save")
        states = ", ".join(f"{name} {state(out, name)}" for name in (first, second))
        diary.add("the controller SIGKILLed", states)

        controller = start(file, out, "--launcher", "ray")
        job = training(cluster, out, "n2")
        diary.add("the controller started again", f"{job} trains on n2")
        cluster.fail("n2")
        diary.add("n2 SIGKILLed with all on it", f"{job} is {state(out, job)}")
        cluster.start("n3")
        other = training(cluster, out, "n3")
        diary.add("n3 started", f"{other} trains there")
        code = controller.wait(400)
        diary.add("the study has ended", f"exit code {code}")
        return code
    finally:
        if controller.poll() is None:
            controller.kill()
            controller.wait()


def working(out: Path) -> list[tuple[str, int]]:
    """Return the jobs that are being worked on, each with its process."""
    return [(e.job.name, e.state.pid) for e in standing(out) if e.word == "running" and e.state]


def training(cluster: Cluster, out: Path, node: str) -> str:
    """Wait until a job is in the first half of its training on a node; return its name."""
    found: list[str] = []

    def trains() -> bool:
        for entry in standing(out):
            seen = entry.state
            early = entry.word == "running" and seen and seen.done and seen.done < 0.6
            if early and cluster.node_of(seen.pid) == node:
                found.append(entry.job.name)
        return bool(found)

    wait(trains, f"a job that trains on {node}")
    return found[0]


def state(out: Path, job: str) -> str:
    """Return how a job stands, in the word of its entry."""
    return next(entry.word for entry in standing(out) if entry.job.name == job)


if __name__ == "__main__":
    began = time.monotonic()
    place = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="qatval-six-"))
    place.mkdir(parents=True, exist_ok=True)
    result = main(place.resolve())
    print(f"{time.monotonic() - began:.0f} s; all of it is in {place}")
    sys.exit(result)
