"""What autopsies read like: the causes in a phrase, and a line for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from qatval.core import formatting
from qatval.core.measurements import Autopsy, Cause, Probe, Repaired

_CAUSES: Final[Mapping[Cause | None, str]] = {
    "averaged scale": "a scale whose average is far from the scale itself",
    "scale": "a scale that left its value",
    "overflow": "an overflow, of which BatchNorm statistics are not finite since",
    "statistics": "BatchNorm statistics that do not fit the weights",
    "average": "the averaging of the weights",
    "rounding": "the rounding of the weights",
    "training": "the training itself, which diverged",
    None: "not found",
}

_REPAIRS: Final[Mapping[Repaired, str]] = {
    "averaged scale": "averaged scales set to what the statistics behind them hold",
    "scale": "scales of the best weights",
    "overflow": "fresh BatchNorm statistics",
    "statistics": "fresh BatchNorm statistics",
    "average": "raw weights",
    "rounding": "weights that nothing rounds",
}


def causes(autopsies: Sequence[Autopsy]) -> str | None:
    """Name what broke a run, where, and what repairing it brings back, None without autopsies.

    For example ``"cause: a scale that left its value (model.2) at epoch 3, 91.0 % restored"``.
    """
    said = []
    for (cause, layer), group in groupby(autopsies, key=lambda one: (one.cause, one.layer)):
        same = list(group)
        noun = "epoch" if len(same) == 1 else "epochs"
        epochs = formatting.listed([str(one.epoch) for one in same])
        shares = [formatting.percent(one.restored) for one in same if one.restored is not None]
        restored = f", {formatting.listed(shares)} restored" if shares else ""
        said.append(f"{_named(cause, layer)} at {noun} {epochs}{restored}")
    return f"cause: {'; '.join(said)}" if said else None


def lines(autopsies: Sequence[Autopsy]) -> Iterator[str]:
    """Yield for each autopsy the cause, and what every repair that was tried restored."""
    for one in autopsies:
        cause = _named(one.cause, one.layer)
        if one.good is None or one.broken is None:
            yield f"epoch {one.epoch}: cause: {cause}; weights are not finite"
            continue
        values = f"from {formatting.value(one.good)} down to {formatting.value(one.broken)}"
        tried = [f"{_repair(probe)} {formatting.percent(probe.restored)}" for probe in one.probes]
        repaired = f", of which came back with {'; '.join(tried)}" if tried else " only"
        images = formatting.count(one.images, "image")
        yield f"epoch {one.epoch}: cause: {cause}; on {images} {values}{repaired}"


def _named(cause: Cause | None, layer: str | None) -> str:
    return f"{_CAUSES[cause]}{f' ({layer})' if layer else ''}"


def _repair(probe: Probe) -> str:
    where = "and all behind" if probe.repaired == "overflow" else "alone"
    return f"{_REPAIRS[probe.repaired]}{f' ({probe.layer} {where})' if probe.layer else ''}"
