"""Exponential moving average of a model's weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of everything floating in a model's ``state_dict``.

    Latent weights and learned scales are averaged as in Gupta & Asthana (WACV 2024, section 3.1),
    BatchNorm statistics too, as Ultralytics does; integer buffers are copied. A scale is the
    magnitude of its parameter, so the magnitude is what is averaged: a parameter that changes its
    sign would take the average through zero although neither side is small. After step ``t``
    (counted from 1) ``x' = d * x' + (1 - d) * x`` with ``d = decay * (1 - exp(-t / tau))``.

    Tensors are matched by name at the first step; from then on the model may change them in place
    only, as optimizers do. With ``decay = 0`` the average is an exact copy of the model after every
    step, but for the sign of a scale's parameter.

    The trainer's loop calls `update`, `update_attr` and reads ``ema``, the names that it uses for
    Ultralytics' own ``ModelEMA``.

    Attributes:
        ema: The averaged model, in evaluation mode.
        updates: Steps taken so far.
    """

    def __init__(
        self, model: nn.Module, decay: float, tau: float, scales: Collection[nn.Parameter] = ()
    ) -> None:
        """Start the average at the model's present weights.

        Args:
            model: Model to follow.
            decay: Largest decay, in [0, 1).
            tau: Time constant of the decay's ramp, in steps.
            scales: Parameters of the model whose magnitude counts.
        """
        self.ema = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.tau = tau
        self.updates = 0
        self._model: nn.Module | None = None
        magnitudes = set(scales)
        self._scale_names = [n for n, p in model.named_parameters() if p in magnitudes]
        for name in self._scale_names:
            self.ema.get_parameter(name).abs_()

    @property
    def effective_decay(self) -> float:
        """Decay of the latest step."""
        return self.decay * (1.0 - math.exp(-self.updates / self.tau))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's present weights.

        Raises:
            ValueError: If the model's tensors are not those the average was made of.
        """
        self.updates += 1
        if model is not self._model:
            self._pair(model)
        weight = 1.0 - self.effective_decay
        torch._foreach_lerp_(*self._floating, weight)
        if self._scale_names:
            averages, values = self._scales
            torch._foreach_lerp_(averages, torch._foreach_abs(values), weight)
        torch._foreach_copy_(*self._counting)

    def _pair(self, model: nn.Module) -> None:
        """Match the model's tensors with the average's by name, once: ``state_dict`` is slow."""
        source = unwrapped(model).state_dict()
        target = self.ema.state_dict()
        if source.keys() != target.keys():
            raise ValueError(
                f"the model's tensors changed: {sorted(source.keys() ^ target.keys())[:3]} ..."
            )
        floating = {name for name, tensor in target.items() if tensor.dtype.is_floating_point}

        def pair(names: Iterable[str]) -> tuple[list[Tensor], list[Tensor]]:
            return [target[name] for name in names], [source[name] for name in names]

        self._floating = pair(sorted(floating.difference(self._scale_names)))
        self._counting = pair(sorted(target.keys() - floating))
        self._scales = pair(self._scale_names)
        self._model = model

    def update_attr(self, model: nn.Module, include: Iterable[str] = ()) -> None:
        """Copy attributes that are not tensors (class names, training arguments)."""
        source = unwrapped(model)
        for name in include:
            if hasattr(source, name):
                setattr(self.ema, name, getattr(source, name))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without what a multi-GPU training wraps it in."""
    inner: nn.Module = (
        model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    )
    return inner
