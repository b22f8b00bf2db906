"""What the verdict on a trajectory reads like: a headline, and a line for each fall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from qatval.core import formatting
from qatval.core.measurements import Fall, TrajectoryRecord

_AFTER = "what came after the training"


def headline(found: TrajectoryRecord, after: str | None = None) -> str:
    """Say a verdict with the epochs it rests on, e.g. ``"evaluation diverged at epoch 16"``.

    Args:
        found: The verdict.
        after: What changed the model after the training.
    """
    lasting = [fall for fall in found.falls if fall.lasting]
    said = [
        f"{kind} {_places(list(falls), after)}"
        for kind, falls in groupby(lasting, key=lambda fall: fall.kind)
    ]
    if found.loss_not_finite is not None:
        said.append(f"training diverged: its loss is not a number in epoch {found.loss_not_finite}")
    if dips := [fall for fall in found.falls if not fall.lasting]:
        said.append(f"{'a dip' if len(dips) == 1 else 'dips'} at {_epochs(dips)}")
    return "; ".join(said if lasting or found.loss_not_finite else [found.verdict, *said])


def remarkable(found: TrajectoryRecord | None, after: str | None = None) -> str | None:
    """Return the headline of a verdict, None where there is nothing to tell: it simply held."""
    if found is None or (found.verdict == "held" and not found.falls):
        return None
    return headline(found, after)


def repaired(found: TrajectoryRecord, after: str | None = None) -> str | None:
    """Say that what came after the training repaired a collapse, None where it did not."""
    fall = next((fall for fall in found.falls if fall.repaired), None)
    if fall is None:
        return None
    return (
        f"{after or _AFTER} repaired a collapse: the training ended below half of its best, "
        f"{formatting.value(fall.best)}, since epoch {fall.epoch}"
    )


def fall_lines(found: TrajectoryRecord, after: str | None = None) -> Iterator[str]:
    """Yield a line for each fall: how deep, how long, and what the training loss did."""
    for fall in found.falls:
        lowest = "not a number" if fall.lowest is None else formatting.value(fall.lowest)
        at = "" if fall.lowest_epoch is None else f" (epoch {fall.lowest_epoch})"
        best = f"epoch {fall.best_epoch}" if fall.best_epoch else "the start"
        told = [f"from {formatting.value(fall.best)} ({best}) down to {lowest}{at}"]
        if fall.epoch is None:
            yield f"{after or _AFTER}: {told[0]}"
            continue
        told.append(f"below half of it for {formatting.count(fall.epochs, 'epoch')}")
        if fall.lost is not None:
            told.append(f"below 1 % from epoch {fall.lost}")
        if fall.repaired:
            told.append(f"repaired by {after or _AFTER}")
        else:
            told.append("to the end" if fall.recovered is None else f"back at {fall.recovered}")
        yield f"epoch {fall.epoch}: {', '.join(told)}; {_loss(fall)}"


def _places(falls: Sequence[Fall], after: str | None) -> str:
    within = [fall for fall in falls if fall.epoch is not None]
    places = [f"at {_epochs(within)}"] if within else []
    if falls[-1].epoch is None:
        places.append(f"by {after or _AFTER}")
    if lost := [fall for fall in falls if fall.lost is not None and fall.recovered is None]:
        since = "" if lost[-1].lost == lost[-1].epoch else f" from epoch {lost[-1].lost}"
        places.append(f"with nothing left{since}")
    if falls[-1].repaired:
        places.append(f"repaired by {after or _AFTER}")
    return ", ".join(places)


def _epochs(falls: Sequence[Fall]) -> str:
    noun = "epoch" if len(falls) == 1 else "epochs"
    return f"{noun} {formatting.listed([str(fall.epoch) for fall in falls])}"


def _loss(fall: Fall) -> str:
    """Say what the training loss did in a fall."""
    if fall.loss_rose is None:
        return "no training loss from before it"
    before, then = (
        "not a number" if loss is None else f"{loss:.3g}"
        for loss in (fall.loss_before, fall.loss_then)
    )
    did = "rose" if fall.loss_rose else "did not rise"
    return f"training loss {did}: {before} at the lowest before, {then} then"
