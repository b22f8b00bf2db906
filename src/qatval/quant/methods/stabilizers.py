"""From a preset's class name to a stabilizer."""

from __future__ import annotations

import importlib
from typing import Any

from qatval.core.errors import UsageError
from qatval.quant import methods
from qatval.quant.latent import LatentWeights
from qatval.quant.stabilizing import Stabilizer


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
