"""What a stabilisation method does beside the gradient steps of a training.

A method's own module subclasses `Stabilizer`; its preset names the class. ARCHITECTURE.md shows a
whole one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qatval.core.errors import UsageError
from qatval.quant.latent import LatentWeights


class Stabilizer:
    """Takes part in every optimizer step; the base class does nothing.

    A training may be interrupted after any step and go on in another process, with a stabilizer
    that is made anew and then given back its `state`.

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

    def state(self) -> dict[str, Tensor]:
        """Return what the steps to come depend on, for a training that is interrupted.

        Here that is every attribute that is a tensor or a number. A class that keeps anything else
        (lists of tensors, other objects) overrides this and `restore`.

        Returns:
            Tensors by name, on any device; they are copied before the next step.

        Raises:
            UsageError: If an attribute is something else.
        """
        found: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            if isinstance(value, bool | int | float):
                # Numbers of Python have 64 bits.
                value = torch.tensor(value, dtype=_DTYPES[type(value)])
            if isinstance(value, Tensor):
                found[name] = value
            elif name != "weights" and not isinstance(value, str | None):
                raise UsageError(
                    f"{type(self).__name__} keeps {type(value).__name__} '{name}', which no "
                    "interrupted training could go on with: expected tensors and numbers, or a "
                    "class that overrides state() and restore()"
                )
        return found

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned before the training was interrupted.

        Args:
            state: The same tensors by name, on the CPU. The model's weights, which may be looked
                at, are those of that moment already.
        """
        device = self.weights.layers[0].weight.device
        for name, tensor in state.items():
            present = getattr(self, name, None)
            if isinstance(present, bool | int | float):
                setattr(self, name, tensor.item())
            elif isinstance(present, Tensor) and present.shape == tensor.shape:
                present.copy_(tensor)
            else:
                setattr(self, name, tensor.to(device))


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}
