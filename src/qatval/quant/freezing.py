"""Iterative freezing: weights that oscillate too often keep one code for good."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qatval.core.errors import UsageError
from qatval.quant.latent import LatentWeights
from qatval.quant.oscillation import OscillationTracker
from qatval.quant.stabilizing import Stabilizer


class Freezing(Stabilizer):
    """Iterative weight freezing (Nagel et al., ICML 2022, algorithm 1).

    After every optimizer step each weight's oscillation frequency and the moving average of its
    integer code are brought up to date. A weight whose frequency exceeds the threshold is frozen
    for good at the rounded average, the code that it had most of the time. Frozen is the code: the
    latent weight is ``code * scale`` from then on and follows the scale, which goes on learning.

    The threshold is off before ``start``. From there it follows a cosine from ``first_threshold``
    to ``last_threshold``, so that the weights that oscillate most are settled first and the others
    can still respond.

    Gradients of frozen weights are removed before gradients are clipped by their norm: what cannot
    move must not make the step of all others smaller.
    """

    def __init__(
        self,
        weights: LatentWeights,
        momentum: float,
        first_threshold: float,
        last_threshold: float,
        start: float,
    ) -> None:
        """Watch these weights from their present codes on.

        Args:
            weights: What to freeze.
            momentum: Of the oscillation frequency and of the codes' average.
            first_threshold, last_threshold: Frequencies.
            start: Share of the training after which weights are frozen, in [0, 1).

        Raises:
            UsageError: If a setting makes no sense.
        """
        super().__init__(weights)
        if not 0.0 < momentum < 1.0:
            raise UsageError(f"the momentum of freezing must lie in (0, 1), got {momentum}")
        if min(first_threshold, last_threshold) < 0.0:
            raise UsageError(
                "the thresholds of freezing must not be negative, "
                f"got {first_threshold} and {last_threshold}"
            )
        if not 0.0 <= start < 1.0:
            raise UsageError(f"freezing must start at a share in [0, 1), got {start}")
        self.first_threshold = first_threshold
        self.last_threshold = last_threshold
        self.start = start
        self._tracker = OscillationTracker(weights, momentum)
        # Of a frozen weight the average is the code that it keeps.
        self._average = weights.flat_codes().float()
        self._frozen = torch.zeros_like(self._average, dtype=torch.bool)

    def threshold(self, progress: float) -> float:
        """Return the frequency above which weights are frozen; infinite before ``start``."""
        if progress < self.start:
            return math.inf
        done = (progress - self.start) / (1.0 - self.start)
        span = self.first_threshold - self.last_threshold
        return self.last_threshold + span * (1.0 + math.cos(math.pi * done)) / 2.0

    def before_step(self, progress: float, images: int) -> None:
        """Remove the gradients of frozen weights."""
        masks = self.weights.unflatten(self._frozen)
        for weight, frozen in zip(self.weights.weights(), masks, strict=True):
            if weight.grad is not None:
                weight.grad.masked_fill_(frozen, 0.0)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Put frozen weights back, take in the codes, and freeze what oscillates too often."""
        # The optimizer's momentum and its weight decay have moved frozen weights too.
        codes = torch.where(self._frozen, self._average, self.weights.flat_codes())
        self._tracker.observe(codes.to(torch.int8))
        self._average.lerp_(codes, self._tracker.momentum)
        if progress < self.start:
            return
        self._frozen.logical_or_(self._tracker.frequency > self.threshold(progress))
        torch.where(self._frozen, self._average.round(), self._average, out=self._average)
        for weight, scale, frozen, code in zip(
            self.weights.weights(),
            self.weights.scales(),
            self.weights.unflatten(self._frozen),
            self.weights.unflatten(self._average),
            strict=True,
        ):
            weight.copy_(torch.where(frozen, code * scale, weight))

    def report(self) -> dict[str, float]:
        """Return the share of weights that are frozen, as ``frozen``."""
        return {"frozen": int(self._frozen.sum()) / self._frozen.numel()}

    def state(self) -> dict[str, Tensor]:
        """Return which weights are frozen, the codes' averages, and what the frequencies are of."""
        own = {"average": self._average, "frozen": self._frozen}
        return own | {f"tracker.{name}": part for name, part in self._tracker.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self._average.copy_(state["average"])
        self._frozen.copy_(state["frozen"])
        start = "tracker."
        self._tracker.restore(
            {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        )
