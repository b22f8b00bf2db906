"""All that qatval changes about Ultralytics outside of its classes.

Importing this module prepares Ultralytics before its first import: it works offline, keeps its
settings in qatval's own folder instead of the user's, and writes nothing to the terminal (a run
sends its messages to files).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qatval.core import interruption
from qatval.core.environment import settings_folder

_settings, _refused = settings_folder()
if _settings is None or _refused:
    # The settings are the same in every process: what matters is that they can be written.
    _temporary = tempfile.TemporaryDirectory(prefix="qatval-settings-", ignore_cleanup_errors=True)
    _settings = Path(_temporary.name)
    os.environ.setdefault("MPLCONFIGDIR", str(_settings))  # it would warn of the same folder
os.environ["YOLO_CONFIG_DIR"] = str(_settings)
_settings.mkdir(parents=True, exist_ok=True)
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_VERBOSE"] = "false"  # no progress bars

# Before Ultralytics, which sets OMP_NUM_THREADS to 1: torch would take that for its own.
import torch  # noqa: E402, F401
from ultralytics.engine import trainer as trainer_module  # noqa: E402
from ultralytics.utils import LOGGER, SETTINGS  # noqa: E402

LOGGER.handlers.clear()
LOGGER.addHandler(logging.NullHandler())
LOGGER.setLevel(logging.INFO)

# Trackers that users have set up for their own work must not log our runs. Only in memory: an
# update through the settings object would rewrite the file on every start.
dict.update(
    SETTINGS,
    dict.fromkeys(
        ("clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb"),
        False,
    ),
)


@contextlib.contextmanager
def own_setup() -> Iterator[None]:
    """Take ``amp`` as it was asked for on a GPU, and let nothing be averaged by Ultralytics.

    Its check downloads a model and loads it as a pickle, which no run may do; its average would be
    replaced at once.
    """
    original = trainer_module.check_amp, trainer_module.ModelEMA
    trainer_module.check_amp = lambda model: next(model.parameters()).device.type == "cuda"
    trainer_module.ModelEMA = lambda model: None
    try:
        yield
    finally:
        trainer_module.check_amp, trainer_module.ModelEMA = original


@contextlib.contextmanager
def own_launch() -> Iterator[None]:
    """Let the processes of a multi-GPU training end by themselves when this one is asked to.

    Ultralytics would kill their launcher, and they would go on without it. In a session of their
    own a terminal's signals do not reach them a second time, which would end them at once.
    """

    def run(command: Sequence[str], *, check: bool) -> None:
        with subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with) as launcher:
            asked = False
            while launcher.poll() is None:
                if interruption.requested() and not asked:
                    launcher.terminate()
                    asked = True
                time.sleep(0.1)
        if check and launcher.returncode and not asked:
            raise subprocess.CalledProcessError(launcher.returncode, command)

    original = trainer_module.subprocess
    trainer_module.subprocess = SimpleNamespace(run=run)
    try:
        yield
    finally:
        trainer_module.subprocess = original


_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with() -> None:
    """In a process to be: ask it to end when the one that starts it is killed."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def logging_to(files: Iterable[Path]) -> Iterator[None]:
    """Send Ultralytics' messages to files."""
    handlers: list[Any] = [logging.FileHandler(file, encoding="utf-8") for file in files]
    for handler in handlers:
        LOGGER.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()
