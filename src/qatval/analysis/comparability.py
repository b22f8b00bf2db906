"""Which runs may be compared: the conditions that have to be equal, and how two sets differ.

Comparable runs are alike but for the method. They agree on variant and checkpoint, quantization,
image size, evaluation settings and on what the dataset is; on epochs and batch size, which with the
image counts are what a profile is; on the kind of device and on the versions of qatval and of the
libraries. A user can let runs of other devices or other versions stand together (`ACROSS`); what is
said of them then says so.

What may differ between a method and what it is compared with:

- the parts of the method that one of the two lacks, with all their settings. Settings of a part
  that both have, the decay of ``ema`` or the learning rate of ``qc``, are conditions
  (`qatval.analysis.conditions`);
- a training, where one of the two has none: Ultralytics' arguments and AMP are conditions among
  methods that train;
- the quantization, of a float control: it stands beside every set of quantized runs that it agrees
  with on all else, so one FP32 training serves every precision;
- the seed, with the training images that it draws: runs of different seeds repeat one experiment,
  those of one seed have drawn the same images;
- paths, threads, and which processor or GPU of a kind it was.

What is not recorded equals only what is not recorded either: a summary of an older tool, without a
dataset identity, is compared with its like on the image counts it does record, never with a run
whose data are known. An incomplete run, which may have stopped before it knew, is listed with the
runs it does not contradict.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qatval.analysis.conditions import conditions, device_kind, library_versions
from qatval.analysis.document import Difference
from qatval.analysis.runs import LoadedRun
from qatval.core.quantization import brief, quantization_label

NOT_RECORDED = "not recorded"

Settings = Mapping[str, Mapping[str, Any]]
"""By the dotted name of what a method has and another one may lack, how it was set up."""


class RunGroup(NamedTuple):
    """Comparable runs, and what they agree on, float controls beside on all but quantization."""

    conditions: dict[str, Any]
    runs: list[LoadedRun]


def across_text(runs: Iterable[LoadedRun], across: Collection[str]) -> str:
    """Say across what a claim about runs is made, to stand after it; empty where they are alike."""
    machines, versions = set[str](), defaultdict[str, set[str]](set)
    for run in runs:
        machines.add(device_kind(run.recorded) or NOT_RECORDED)
        for library, version in library_versions(run.recorded).items():
            versions[library].add(version or NOT_RECORDED)
    said = []
    if "machine" in across and len(machines) > 1:
        said.append(f"machines ({', '.join(sorted(machines))})")
    differing = [
        f"{k} {', '.join(sorted(found))}" for k, found in versions.items() if len(found) > 1
    ]
    if "versions" in across and differing:
        said.append(f"versions ({'; '.join(differing)})")
    return f"; across {' and '.join(said)}" if said else ""


def differing_conditions(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Return where two runs' conditions differ, in order of the field's dotted name.

    What only one of them has, a part of the method or a training at all, is no difference.
    Quantizations that are called differently are one difference, however many layers it reaches.
    `NOT_RECORDED` stands for the value of a run that does not record the field.
    """
    ours, theirs = dict(one), dict(other)
    quantizations = ours.pop("quantization"), theirs.pop("quantization")
    parts = ours.pop("parts"), theirs.pop("parts")
    found = [
        *_differing_fields(ours, theirs, ""),
        *_differing_quantization(*quantizations),
        *_differing_settings(*parts),
    ]
    return sorted(found, key=lambda difference: difference.field)


def difference_text(difference: Difference) -> str:
    """Write field and values on one line; of digests the first 16 characters tell them apart."""
    texts = str(difference.value), str(difference.other)
    value, other = (t[:16] if len(t) >= 32 and " " not in t else t for t in texts)
    return f"{difference.field} ({value} / {other})"


def groups(runs: Iterable[LoadedRun], across: Collection[str] = ()) -> list[RunGroup]:
    """Divide runs into groups of comparable ones.

    A float control is in every group it fits, and so is a run that lacks what others have in
    several settings: ``baseline`` stands beside ``ema`` of each decay.

    The largest comes first, of equal ones the default preset's (W4A16), then as the runs came;
    groups of nothing but float controls are the last.

    Args:
        runs: The runs.
        across: Which of `ACROSS` may differ within a group.
    """
    found = [(run, conditions(run.recorded, across)) for run in runs]
    quantized = _divided([(run, own) for run, own in found if run.quantized])
    controls = [(run, own) for run, own in found if not run.quantized]
    for run, own in controls:
        for candidates in quantized:
            if _agrees(run, own, candidates.conditions, but="quantization"):
                candidates.members.append((run, own))
    beside = [g for g in _by_settings(quantized) if any(run.quantized for run in g.runs)]
    placed = {id(run) for group in beside for run in group.runs}
    alone = _by_settings(_divided([(run, own) for run, own in controls if id(run) not in placed]))
    return _largest_first(beside) + _largest_first(alone)


class _Candidates(NamedTuple):
    """Runs that agree on all but the settings of what not all of them have."""

    conditions: dict[str, Any]
    members: list[tuple[LoadedRun, dict[str, Any]]]


def _divided(found: Sequence[tuple[LoadedRun, dict[str, Any]]]) -> list[_Candidates]:
    divided: dict[str, _Candidates] = {}
    for run, own in sorted(found, key=lambda member: not member[0].completed):
        everywhere = own | {"parts": {}}
        fitting = (c for c in divided.values() if _agrees(run, everywhere, c.conditions))
        candidates = None if run.completed else next(fitting, None)
        if candidates is None:
            key = json.dumps(everywhere, sort_keys=True)
            candidates = divided.setdefault(key, _Candidates(everywhere, []))
        candidates.members.append((run, own))
    return list(divided.values())


def _by_settings(found: Iterable[_Candidates]) -> list[RunGroup]:
    """Divide runs so that those which share a part, or a training, share its settings."""
    return [
        RunGroup(
            candidates.conditions | {"parts": settings},
            [run for run, own in candidates.members if _fits(run, own["parts"], settings)],
        )
        for candidates in found
        for settings in _agreed(candidates)
    ]


def _agreed(candidates: _Candidates) -> list[Settings]:
    """Return the settings that candidates are divided by.

    What each run has is the beginning of a group, that of most parts first, unless it is in one
    already. To it come, in the same order, the others that contradict nothing in it yet; so with
    every method is what it extends, and each of its controls.
    """
    known: dict[str, Settings] = {}
    order = sorted(candidates.members, key=lambda m: (not m[0].completed, -len(m[1]["parts"])))
    for run, own in order:
        parts = own["parts"]
        if run.completed or not any(_fits(run, parts, other) for other in known.values()):
            known.setdefault(json.dumps(parts, sort_keys=True), parts)
    agreed: list[Settings] = []
    for first in known.values():
        if any(first.items() <= settings.items() for settings in agreed):
            continue
        settings = dict(first)
        for other in known.values():
            if not any(_differing_settings(settings, other)):
                settings |= other
        agreed.append(settings)
    return agreed


def _fits(run: LoadedRun, own: Settings, settings: Settings) -> bool:
    """Whether a run's settings are these; those of an incomplete one need only not contradict."""
    return all(_tolerated(run, d) for d in _differing_settings(own, settings))


def _agrees(
    run: LoadedRun, own: Mapping[str, Any], wanted: Mapping[str, Any], but: str | None = None
) -> bool:
    """Whether a run satisfies conditions; an incomplete one need only not contradict them."""
    return all(d.field == but or _tolerated(run, d) for d in differing_conditions(own, wanted))


def _tolerated(run: LoadedRun, difference: Difference) -> bool:
    return not run.completed and difference.value == NOT_RECORDED


def _largest_first(found: Sequence[RunGroup]) -> list[RunGroup]:
    def rank(group: RunGroup) -> tuple[int, bool]:
        return -len(group.runs), brief(quantization_label(group.conditions["quantization"])) != ""

    return sorted(found, key=rank)


def _differing_quantization(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[Difference]:
    differing = list(_differing_fields(one, other, "quantization."))
    layers = [d for d in differing if d.field.startswith("quantization.layers.")]
    settings = [d for d in differing if d not in layers]
    known = [d for d in settings if NOT_RECORDED not in (d.value, d.other)]
    if known and quantization_label(one) != quantization_label(other):
        yield Difference("quantization", quantization_label(one), quantization_label(other))
        return
    yield from settings
    if layers:
        first, more = layers[0], len(layers) - 1
        name = first.field.removeprefix("quantization.layers.")
        also = f" and {more} more" if more else ""
        yield Difference("quantization.layers", f"{first.value} ({name}{also})", first.other)


def _differing_settings(one: Settings, other: Settings) -> Iterator[Difference]:
    """Yield where settings of what both have differ."""
    for name in sorted(one.keys() & other.keys()):
        yield from _differing_fields(one[name], other[name], f"{name}.")


def _differing_fields(
    one: Mapping[str, Any], other: Mapping[str, Any], path: str
) -> Iterator[Difference]:
    for name in sorted(one.keys() | other.keys()):
        field, a, b = f"{path}{name}", one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differing_fields(a, b, f"{field}.")
        elif a != b:
            yield Difference(field, _shown(a), _shown(b))


def _shown(value: Any) -> Any:
    if value is None:
        return NOT_RECORDED
    return "recorded" if isinstance(value, Mapping) else value
