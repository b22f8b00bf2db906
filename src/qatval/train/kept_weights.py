"""The weights that a training keeps: the latest, the best, and those of epochs in which they fell.

All are latent weights, raw and averaged::

    <folder>/<raw or ema>/weights/last.safetensors  best.safetensors
                          falls/<epoch>/raw.safetensors    of an epoch in which they fell
                                        ema.safetensors    only where it is the average that fell
                                        best.safetensors   the best until then
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, get_args

from torch import nn

from qatval.quant.methods.part import Weights
from qatval.train.models import CheckpointInfo, save_checkpoint
from qatval.train.trajectory import fallen_file, weights_file

MOST_FALLS: Final = 5
"""Of either kind of weights. What falls again and again fills no disk."""


class KeptWeights:
    """Files of a training's weights in its folder."""

    def __init__(
        self, folder: Path, info: CheckpointInfo, model_of: Callable[[Weights], nn.Module]
    ) -> None:
        """Keep what a function returns, raw and averaged."""
        self._folder = folder
        self._info = info
        self._model_of = model_of

    def keep_last(self) -> None:
        """Keep the weights as they are now."""
        for which in get_args(Weights):
            self._save(weights_file(self._folder, which, "last"), which)

    def keep_best(self, which: Weights) -> None:
        """Keep weights that are better than any before."""
        self._save(weights_file(self._folder, which, "best"), which)

    def keep_fallen(self, which: Weights, epoch: int) -> None:
        """Keep weights that fell in an epoch, what they are made of, and the best until then.

        An interrupted training that scores the epoch again keeps them again.
        """
        file_of = partial(fallen_file, self._folder, which, epoch)
        folder = file_of("best").parent
        if not folder.exists() and len(list(folder.parent.glob("*"))) >= MOST_FALLS:
            return
        for name in dict.fromkeys((which, "raw")):
            self._save(file_of(name), name)
        best = weights_file(self._folder, which, "best")
        if best.exists():
            shutil.copyfile(best, file_of("best"))

    def _save(self, path: Path, which: Weights) -> None:
        save_checkpoint(path, self._model_of(which), self._info)
