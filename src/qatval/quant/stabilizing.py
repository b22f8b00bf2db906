"""What a stabilisation method does beside the gradient steps of a training.

A method's own module subclasses `Stabilizer`; its preset names the class. ARCHITECTURE.md shows a
whole one.
"""

from __future__ import annotations

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
