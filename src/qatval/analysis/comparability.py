"""Which runs may be compared: the conditions that have to be equal, and how two sets differ.

Comparable runs agree on variant, quantization, image size, evaluation settings and on what the
dataset is. Epochs and batch size are conditions as well: with the image counts they are what a
profile is, and a repetition of one training must not be averaged with a longer one.

Paths, machines and versions are no conditions, nor is the seed: runs of different seeds repeat one
experiment, although each draws its own training images. What is not recorded equals only what is
not recorded either: a summary of an older tool, without a dataset identity, is compared with its
like on the image counts it does record, never with a run whose data are known. An incomplete run,
which may have stopped before it knew, is listed with the first runs it does not contradict.

A float control has no quantization. It stands beside every set of quantized runs that it agrees
with on all else, so one FP32 training serves every precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qatval.analysis.document import Difference
from qatval.analysis.runs import LoadedRun
from qatval.core.quantization import brief, quantization_label

NOT_RECORDED = "not recorded"


class RunGroup(NamedTuple):
    """Comparable runs, and what they agree on, float controls beside on all but quantization."""

    conditions: dict[str, Any]
    runs: list[LoadedRun]


def conditions(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal in comparable runs, of a summary as the JSON that was read.

    Nested as in the summary; None stands for what is not recorded.
    """
    model, dataset, training = recorded["model"], recorded["dataset"], recorded["training"]
    quantization = {k: v for k, v in recorded["quantization"].items() if v is not None}
    coverage = quantization.pop("coverage", None)
    layers = coverage and {layer["name"]: _bits(layer) for layer in coverage["layers"]}
    quantization.setdefault("boundary_bit_width", "as everywhere")
    identity = dataset.get("identity")
    return {
        "model": {"variant": model["variant"], "imgsz": model["imgsz"]},
        "training": {
            "epochs": training["epochs"],
            "batch": training["batch"],
            "batchnorm": training.get("batchnorm") or "running",
        },
        "dataset": {
            "train_images": dataset["train_images"],
            "val_images": dataset["val_images"],
            "identity": None if identity is None else comparable_identity(identity),
        },
        "quantization": quantization | {"layers": layers},
        "evaluation": recorded.get("evaluation"),
    }


def comparable_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataset's identity without what a run's seed alone decides.

    Of a training selection drawn with the seed, the rule and the count stay; the seed and the
    digest of the ids it drew go. A selection of all images or of a user's own list stays whole.
    """
    train = identity.get("train")
    if not isinstance(train, Mapping) or train.get("seed") is None:
        return dict(identity)
    return {
        **identity,
        "train": {k: v for k, v in train.items() if k not in ("seed", "image_ids_sha256")},
    }


def differing_conditions(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Return where two runs' conditions differ, in order of the field's dotted name.

    Quantizations that are called differently are one difference, however many layers it reaches.
    `NOT_RECORDED` stands for the value of a run that does not record the field.
    """
    ours, theirs = dict(one), dict(other)
    quantizations = ours.pop("quantization"), theirs.pop("quantization")
    found = [*_differing_fields(ours, theirs, ""), *_differing_quantization(*quantizations)]
    return sorted(found, key=lambda difference: difference.field)


def difference_text(difference: Difference) -> str:
    """Write field and values on one line; of digests the first 16 characters tell them apart."""
    texts = str(difference.value), str(difference.other)
    value, other = (t[:16] if len(t) >= 32 and " " not in t else t for t in texts)
    return f"{difference.field} ({value} / {other})"


def groups(runs: Iterable[LoadedRun]) -> list[RunGroup]:
    """Divide runs into groups of comparable ones, a float control into every one it fits.

    The largest comes first, of equal ones the default preset's (W4A16), then as the runs came;
    groups of nothing but float controls are the last.
    """
    runs = list(runs)
    quantized = _divided([run for run in runs if run.quantized])
    alone: list[LoadedRun] = []
    for run in (run for run in runs if not run.quantized):
        own = conditions(run.recorded)
        beside = [g for g in quantized if _agrees(run, own, g.conditions, but="quantization")]
        for group in beside:
            group.runs.append(run)
        if not beside:
            alone.append(run)
    return _largest_first(quantized) + _largest_first(_divided(alone))


def _divided(runs: Sequence[LoadedRun]) -> list[RunGroup]:
    found: dict[str, RunGroup] = {}
    for run in sorted(runs, key=lambda run: not run.completed):
        own = conditions(run.recorded)
        fitting = (g for g in found.values() if _agrees(run, own, g.conditions))
        group = None if run.completed else next(fitting, None)
        if group is None:
            group = found.setdefault(json.dumps(own, sort_keys=True), RunGroup(own, []))
        group.runs.append(run)
    return list(found.values())


def _agrees(
    run: LoadedRun, own: Mapping[str, Any], wanted: Mapping[str, Any], but: str | None = None
) -> bool:
    """Whether a run satisfies conditions; an incomplete one need only not contradict them."""
    return all(
        d.field == but or (not run.completed and d.value == NOT_RECORDED)
        for d in differing_conditions(own, wanted)
    )


def _largest_first(found: Sequence[RunGroup]) -> list[RunGroup]:
    def rank(group: RunGroup) -> tuple[int, bool]:
        return -len(group.runs), brief(quantization_label(group.conditions["quantization"])) != ""

    return sorted(found, key=rank)


def _bits(layer: Mapping[str, Any]) -> str:
    if not layer["bits"]:
        return "float"
    activations = layer.get("activation_bits")
    of_input = f", input {activations} bit" if activations else ""
    return f"{layer['bits']} bit {layer.get('scale')}{of_input}"


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
