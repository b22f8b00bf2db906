"""Everything that knows Ultralytics: models, data loading, the trainer, evaluation.

Importing this package prepares Ultralytics before its first import: it works offline, keeps its
settings in qatval's own folder instead of the user's, and writes nothing to the terminal (a run
sends its messages to a file in the run root).
"""

import logging
import os
from pathlib import Path

import platformdirs

_settings = Path(
    os.environ.setdefault(
        "YOLO_CONFIG_DIR", str(platformdirs.user_config_path("qatval", appauthor=False))
    )
)
_settings.mkdir(parents=True, exist_ok=True)
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_VERBOSE"] = "false"  # no progress bars

# Before Ultralytics, which sets OMP_NUM_THREADS to 1: torch would take that for its own.
import torch  # noqa: E402, F401
from ultralytics.utils import LOGGER, SETTINGS  # noqa: E402

__all__ = ["LOGGER"]

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
