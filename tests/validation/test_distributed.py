"""Scoring on several ranks, each with its share of the images, gives what one process gives.

GPUs are not needed for that: two processes on the CPU, talking through gloo.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

PROGRAM = Path(__file__).with_name("score_process.py")


def test_ranks_together_score_what_one_process_scores(tmp_path: Path) -> None:
    from qatval.core.presets import variant
    from qatval.data.shapes import draw_dataset

    draw_dataset(tmp_path / "shapes", train_images=2, val_images=14)
    checkpoint = variant("yolo10n").checkpoint_for("shapes").resolve()
    arguments = [str(PROGRAM), str(tmp_path / "shapes"), str(checkpoint)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def value(*command: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("value")]
        return line

    alone = value(*arguments)
    assert float(alone.split()[1]) > 0.3
    assert value(*launcher, *arguments) == alone
