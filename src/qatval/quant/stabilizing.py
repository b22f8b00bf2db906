"""What a stabilisation method does beside the gradient steps of a training.

A method's own module subclasses `Stabilizer`; its preset names the class. ARCHITECTURE.md shows a
whole one.
"""

from __future__ import annotations

import importlib
from typing import Any

from qatval import methods
from qatval.errors import UsageError
from qatval.quant.latent import LatentWeights


class Stabilizer:
    """Takes part in every optimizer step; the base class does nothing.

    Attributes:
        weights: Latent weights, their scales and codes, always as they are.
    """

    def __init__(self, weights: LatentWeights) -> None:
        """Watch these weights; subclasses take their preset's settings as keyword arguments."""
        self.weights = weights

    def before_step(self, progress: float, images: int) -> None:
        """Add to the gradients of the latent weights, before they are clipped and applied.

        Args:
            progress: Share of the training's optimizer steps that are done, in [0, 1).
            images: How many images the gradients are summed over. The detection loss is a sum
                over images and not a mean, so a penalty on the weights counts once per image.
        """

    def after_step(self, progress: float) -> None:
        """Change latent weights in place, after the optimizer has.

        Args:
            progress: Share of the training's optimizer steps that are done, in (0, 1].
        """

    def report(self) -> dict[str, float]:
        """Return numbers worth recording of the method's state, by name."""
        return {}


def make_stabilizer(chosen: methods.Stabilizer, weights: LatentWeights) -> Stabilizer:
    """Import a preset's class and start it on these weights.

    Raises:
        UsageError: If there is no such class, or it does not take the preset's settings.
    """
    module, _, name = chosen.implementation.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"cannot import the method '{chosen.implementation}': {error}; a preset names a class "
            "as 'module:Class'"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Stabilizer)):
        raise UsageError(f"the method '{chosen.implementation}' is no subclass of Stabilizer")
    try:
        return found(weights, **chosen.settings)
    except TypeError as error:
        raise UsageError(
            f"the method '{chosen.implementation}' does not take its settings: {error}"
        ) from error
