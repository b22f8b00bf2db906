"""For sessions that never train: the fixtures of the plugin, with runs that lie in a folder.

What is tested with them is who runs what how often, not what a training gives;
tests/validation does that. A session's conftest imports the fixtures from here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from qatval.core.summary import load_summary, write_summary
from qatval.data.shapes import MANIFEST_NAME
from qatval.run import runner
from qatval.run.configuration import RunConfig
from qatval.testing.settings import Settings

STORED = "stored"
"""Holds the summary of each run in a folder ``method-seed``."""

CALLS = "calls.txt"
"""Gets a line for each call of the runner: its methods and its seed."""


@pytest.fixture(scope="session")
def embedded_dataset(qatval_settings: Settings) -> Path:
    """Return a dataset of nothing but its name."""
    root = qatval_settings.session_dir / f"data{os.getpid()}"
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST_NAME).write_text('{"name": "shapes"}')
    return root


@pytest.fixture(autouse=True)
def stored_runs(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """Let the runner fetch what is stored in the place of training."""
    session = pytestconfig.rootpath

    def run(config: RunConfig, progress: Any) -> None:
        with (session / CALLS).open("a") as stream:
            stream.write(",".join(m.name for m in config.methods) + f" {config.seed}\n")
        if hasattr(pytestconfig, "workerinput"):
            time.sleep(0.3)  # for the other worker to want the same
        for method in config.methods:
            stored = load_summary(session / STORED / f"{method.name}-{config.seed}")
            write_summary(config.root_of(method.name), stored)

    monkeypatch.setattr(runner, "run", run)
