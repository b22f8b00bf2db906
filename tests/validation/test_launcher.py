"""Scenarios that processes of a study run, against the same in the process of their test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qatval.analysis.runs import collect
from qatval.core import presets
from qatval.data.shapes import draw_dataset
from qatval.run.study.plan import read_plan
from qatval.run.study.standing import entries
from qatval.testing.scenarios import REAL_DATA_VARIABLE

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

PROJECT = {
    "conftest.py": 'pytest_plugins = ["qatval.testing.plugin"]\n',
    "pytest.ini": "[pytest]\n",
    "cluster.toml": "[resources]\nthreads = 1\n",
    "test_runs.py": "def test_run(coco_scenario, validation_run):\n"
    "    assert validation_run(coco_scenario).method == coco_scenario.method\n",
}


def values(project: Path, data: Path, *options: str) -> tuple[Path, dict[str, float | None]]:
    """Run two scenarios; return the session's folder and the final mAP of each method."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k"]
    command += ["photographs and seed0 and not qc", "--seeds=0", *options]
    done = subprocess.run(
        command,
        cwd=project,
        env=os.environ | {REAL_DATA_VARIABLE: str(data), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    (folder,) = project.glob("*/session-*")
    runs, unreadable = collect([folder])
    assert not unreadable
    found = {run.method: run.summary.metrics.final_value for run in runs}
    assert found.keys() == {"baseline", "ema"}
    return folder, found


def test_a_launched_session_finds_what_others_find(tmp_path: Path) -> None:
    """A dozen drawn images stand for the photographs: two trainings in a minute."""
    data = tmp_path / "data"
    draw_dataset(data / "images", train_images=8, val_images=4)
    checkpoint = presets.variant("yolo10n").embedded_checkpoint
    assert checkpoint is not None
    (data / "yolov10n.safetensors").symlink_to(checkpoint)
    found = {}
    for name, options in {
        "alone": (),
        "launched": ("--launcher=local", "--launcher-config=cluster.toml"),
    }.items():
        project = tmp_path / name
        project.mkdir()
        for file, content in PROJECT.items():
            (project / file).write_text(content)
        folder, found[name] = values(project, data, "--run-root=kept", *options)

    assert found["launched"] == found["alone"]
    plan = read_plan(folder)
    assert [(entry.word, entry.job.methods) for entry in entries(plan, folder)] == [
        ("done", ("baseline", "ema"))
    ]
    assert (folder / "comparison.html").exists()
