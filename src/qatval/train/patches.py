"""What of Ultralytics' own modules is replaced while one of its functions runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ultralytics.engine import trainer as trainer_module


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
