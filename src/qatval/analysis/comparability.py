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
from dataclasses import dataclass
from typing import Any

from qatval.analysis.runs import LoadedRun
from qatval.core.quantization import brief, quantization_label
from qatval.core.summary import Summary

NOT_RECORDED = "not recorded"

Conditions = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A condition in which two sets of runs differ.

    Attributes:
        field: Its dotted name.
        value, other: What the two have; `NOT_RECORDED` where one says nothing.
    """

    field: str
    value: Any
    other: Any

    def __str__(self) -> str:
        """Return field and values on one line; digests are told apart by their beginnings."""
        return f"{self.field} ({_short(self.value)} / {_short(self.other)})"


def conditions(summary: Summary) -> Conditions:
    """Return what must be equal in comparable runs, nested as in the summary."""
    model, dataset, training = summary["model"], summary["dataset"], summary["training"]
    quantization = {k: v for k, v in summary["quantization"].items() if v is not None}
    coverage = quantization.pop("coverage", None)
    quantization.setdefault("boundary_bit_width", "as everywhere")
    identity = dataset.get("identity")
    return {
        "model": {"variant": model["variant"], "imgsz": model["imgsz"]},
        "training": {
            "epochs": training["epochs"],
            "batch": training["batch"],
            "batchnorm": training.get("batchnorm", "running"),
        },
        "dataset": {
            "train_images": dataset["train_images"],
            "val_images": dataset["val_images"],
            "identity": None if identity is None else comparable_identity(identity),
        },
        "quantization": quantization | {"layers": _bits(coverage)},
        "evaluation": summary.get("evaluation"),
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


def differences(one: Conditions, other: Conditions) -> list[Difference]:
    """Return the conditions in which two differ, in order of the field.

    Quantizations that are called differently are one difference, however many layers it reaches.
    """
    ours, theirs = dict(one), dict(other)
    quantizations = ours.pop("quantization"), theirs.pop("quantization")
    found = [*_differences(ours, theirs, ""), *_of_quantizations(*quantizations)]
    return sorted(found, key=lambda difference: difference.field)


def _of_quantizations(one: Conditions, other: Conditions) -> Iterator[Difference]:
    differing = list(_differences(one, other, "quantization."))
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


Group = tuple[Conditions, list[LoadedRun]]
"""Comparable runs and what they agree on; with quantized ones among them, those of the latter."""


def groups(runs: Iterable[LoadedRun]) -> list[Group]:
    """Divide runs into sets of comparable ones, the largest first (ties: W4A16, then as they came).

    A float control is in every set of quantized runs that it is comparable with, and sets of
    nothing but float controls come last.
    """
    runs = list(runs)
    quantized = _divided([run for run in runs if run.quantized])
    found = [(wanted, list(members)) for wanted, members in quantized]
    alone: list[LoadedRun] = []
    for run in (run for run in runs if not run.quantized):
        own = conditions(run.summary)
        beside = [group for group in found if _agrees(run, own, group[0], but="quantization")]
        for _, members in beside:
            members.append(run)
        if not beside:
            alone.append(run)
    return _largest_first(found) + _largest_first(_divided(alone))


def _divided(runs: Sequence[LoadedRun]) -> list[Group]:
    found: dict[str, Group] = {}
    for run in sorted(runs, key=lambda run: not run.completed):
        wanted = conditions(run.summary)
        group = None
        if not run.completed:
            group = next((g for g in found.values() if _agrees(run, wanted, g[0])), None)
        if group is None:
            group = found.setdefault(json.dumps(wanted, sort_keys=True), (wanted, []))
        group[1].append(run)
    return list(found.values())


def _agrees(run: LoadedRun, own: Conditions, wanted: Conditions, but: str | None = None) -> bool:
    """Whether a run satisfies conditions; an incomplete one need only not contradict them."""
    return all(
        d.field == but or (not run.completed and d.value == NOT_RECORDED)
        for d in differences(own, wanted)
    )


def _largest_first(found: Sequence[Group]) -> list[Group]:
    def rank(group: Group) -> tuple[int, bool]:
        return -len(group[1]), brief(quantization_label(group[0]["quantization"])) != ""

    return sorted(found, key=rank)


def _bits(coverage: Mapping[str, Any] | None) -> dict[str, str] | None:
    if coverage is None:
        return None
    return {layer["name"]: _of_layer(layer) for layer in coverage["layers"]}


def _of_layer(layer: Mapping[str, Any]) -> str:
    if not layer["bits"]:
        return "float"
    activations = layer.get("activation_bits")
    of_input = f", input {activations} bit" if activations else ""
    return f"{layer['bits']} bit {layer.get('scale')}{of_input}"


def _differences(one: Conditions, other: Conditions, path: str) -> Iterator[Difference]:
    for name in sorted(one.keys() | other.keys()):
        field, a, b = f"{path}{name}", one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{field}.")
        elif a != b:
            yield Difference(field, _shown(a), _shown(b))


def _shown(value: Any) -> Any:
    if value is None:
        return NOT_RECORDED
    return "recorded" if isinstance(value, Mapping) else value


def _short(value: Any) -> str:
    text = str(value)
    is_digest = len(text) >= 32 and " " not in text
    return text[:16] if is_digest else text
