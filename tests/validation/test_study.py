"""A study whose controller and whose process are killed ends as if nobody had touched it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qatval.core.presets import EMBEDDED
from qatval.core.summary import load_summary
from qatval.run.study.controller import LOG_NAME
from qatval.run.study.plan import Job, read_plan
from qatval.run.study.standing import entries
from qatval.run.study.state import read_state

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

METHODS, SEEDS = ("baseline", "ema"), (0, 1)
SETTINGS = {"epochs": 5, "imgsz": 64, "batch": 8, "train_images": 32, "val_images": 8}
FILE = f"""
variants = ["yolo10n"]
methods = {[*METHODS]}
seeds = {[*SEEDS]}
dataset = "embedded"
resources = {{ threads = 1 }}
[trainings.tiny]
profile = "smoke"
""" + "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())

COMMAND = "import sys; from qatval.cli.main import main; sys.exit(main())"
ALONE = """
import json, pathlib, sys
from qatval.core.environment import prepare_process
prepare_process()
from qatval.core.progress import Progress
from qatval.run import runner
from qatval.run.configuration import configure
given = json.loads(sys.argv[1])
for name in ("run_root", "coco_root", "cache_dir"):
    given[name] = pathlib.Path(given[name])
runner.run(configure(**given), Progress("alone", quiet=True))
"""
_DEADLINE_S = 120


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    own = {"QATVAL_CACHE_DIR": cache, "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def printed(job: Job, out: Path) -> str:
    """Return what the attempts at a job have printed so far."""
    log = job.folder(out) / LOG_NAME
    return log.read_text() if log.exists() else ""


def digests(roots: Mapping[str, Path]) -> dict[str, str]:
    """Return by method the digest of the codes that a run has delivered."""
    found = {}
    for method, root in roots.items():
        (file,) = root.glob("ultralytics/*/weights/integer.safetensors")
        found[method] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def test_a_study_survives_its_controller_and_its_processes(
    tmp_path: Path, environment: Mapping[str, str]
) -> None:
    file, out = tmp_path / "study.toml", tmp_path / "out"
    file.write_text(FILE)
    command = [sys.executable, "-c", COMMAND, "study", str(file), "--out", str(out)]
    log = (tmp_path / "controller.txt").open("w")

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    with started() as controller:
        until((out / "study.json").exists)
        first, second = read_plan(out).jobs
        until(lambda: "epoch 1/" in printed(first, out))
        controller.kill()
    with started() as controller:
        until(lambda: "epoch 3/" in printed(first, out))
        state, _ = read_state(first.folder(out))
        assert state is not None
        os.kill(state.pid, signal.SIGKILL)
        assert controller.wait(_DEADLINE_S) == 0, (tmp_path / "controller.txt").read_text()

    assert [entry.word for entry in entries(read_plan(out), out)] == ["done", "done"]
    assert "interrupted by SIGTERM after" in printed(first, out)
    assert state.attempt == 2
    assert printed(first, out).count("goes on") > 1
    for suffix in ("json", "md", "html"):
        assert (out / f"comparison.{suffix}").exists()
    alone = [(job, run_alone(job, out, tmp_path / "alone", environment)) for job in (first, second)]
    for job, process in alone:
        assert process.wait(_DEADLINE_S) == 0
        roots = {method: tmp_path / "alone" / str(job.seed) / method for method in METHODS}
        assert digests(job.run_roots(out)) == digests(roots)
        for method, root in roots.items():
            assert load_summary(root).metrics == load_summary(job.run_roots(out)[method]).metrics


def run_alone(
    job: Job, out: Path, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start what a job runs, without a study."""
    given = {"variant": "yolo10n", "methods": METHODS, "seed": job.seed, "profile": "smoke"}
    given |= {"run_root": str(folder / str(job.seed)), "coco_root": str(out / EMBEDDED)}
    given |= {"cache_dir": environment["QATVAL_CACHE_DIR"], "device": "cpu", **SETTINGS}
    program = [sys.executable, "-c", ALONE, json.dumps(given)]
    return subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL)
