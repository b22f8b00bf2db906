"""What autopsies read like: the causes in a phrase, and a line for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from qatval.core import formatting
from qatval.core.measurements import Autopsy, Cause, Probe

_CAUSES: Final[Mapping[Cause | None, str]] = {
    "averaged scale": "a scale whose average is far from the scale itself",
    "scale": "a scale that left its value",
    "statistics": "BatchNorm statistics that do not fit the weights",
    "average": "the averaging of the weights",
    "rounding": "the rounding of the weights",
    "training": "the training itself, not its quantization",
    None: "not found",
}

_REPAIRS: Final[Mapping[Cause, str]] = {
    "averaged scale": "scales as they are in place of averaged ones",
    "scale": "scales of the best weights",
    "statistics": "fresh BatchNorm statistics",
    "average": "raw weights",
    "rounding": "weights that nothing rounds",
    "training": "training",
}


def causes(autopsies: Sequence[Autopsy]) -> str | None:
    """Name what broke a run, e.g. ``"cause: a scale that left its value (model.2) at epoch 3"``.

    Returns:
        None where no autopsy was made.
    """
    if not autopsies:
        return None
    said = []
    for (cause, layer), same in groupby(autopsies, key=lambda one: (one.cause, one.layer)):
        epochs = [str(one.epoch) for one in same]
        noun = "epoch" if len(epochs) == 1 else "epochs"
        said.append(f"{_named(cause, layer)} at {noun} {formatting.listed(epochs)}")
    return f"cause: {'; '.join(said)}"


def lines(autopsies: Sequence[Autopsy]) -> Iterator[str]:
    """Yield for each autopsy the cause, and what every repair that was tried restored."""
    for one in autopsies:
        cause = _named(one.cause, one.layer)
        if one.good is None or one.broken is None:
            yield f"epoch {one.epoch}: cause: {cause}; weights are not finite"
            continue
        tried = [f"{_repair(probe)} {_restored(probe)}" for probe in one.probes]
        yield (
            f"epoch {one.epoch}: cause: {cause}; on {formatting.count(one.images, 'image')} from "
            f"{formatting.value(one.good)} down to {formatting.value(one.broken)}, of which came "
            f"back with {'; '.join(tried) or 'nothing tried'}"
        )


def _named(cause: Cause | None, layer: str | None) -> str:
    return f"{_CAUSES[cause]}{f' ({layer})' if layer else ''}"


def _repair(probe: Probe) -> str:
    return f"{_REPAIRS[probe.repaired]}{f' ({probe.layer} alone)' if probe.layer else ''}"


def _restored(probe: Probe) -> str:
    return "nothing" if probe.restored is None else formatting.percent(probe.restored)
