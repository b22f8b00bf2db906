"""Which runs may be compared: the conditions that have to be equal, and how two sets differ.

Comparable runs agree on variant, quantization, image size, evaluation settings and on what the
dataset is. Epochs and batch size are conditions as well: with the image counts they are what a
profile is, and a repetition of one training must not be averaged with a longer one.

Paths, machines and versions are no conditions, nor is the seed: runs of different seeds repeat one
experiment, although each draws its own training images. What is not recorded equals only what is
not recorded either: a summary of an older tool, without a dataset identity, is compared with its
like on the image counts it does record, never with a run whose data are known. An incomplete run,
which may have stopped before it knew, is listed with the first runs it does not contradict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qatval.record import Summary
from qatval.runs import LoadedRun

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
        return f"{self.field} ({str(self.value)[:16]} / {str(self.other)[:16]})"


def conditions(summary: Summary) -> Conditions:
    """Return what must be equal in comparable runs, nested as in the summary."""
    model, dataset, training = summary["model"], summary["dataset"], summary["training"]
    quantization = dict(summary["quantization"])
    coverage = quantization.pop("coverage", None)
    identity = dataset.get("identity")
    return {
        "model": {"variant": model["variant"], "imgsz": model["imgsz"]},
        "training": {"epochs": training["epochs"], "batch": training["batch"]},
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
    """Return the conditions in which two differ, in order of the field."""
    return list(_differences(one, other, ""))


def groups(runs: Iterable[LoadedRun]) -> list[tuple[Conditions, list[LoadedRun]]]:
    """Divide runs into sets of comparable ones, the largest first (ties: as they came)."""
    found: dict[str, tuple[Conditions, list[LoadedRun]]] = {}
    for run in sorted(runs, key=lambda run: not run.completed):
        wanted = conditions(run.summary)
        group = None if run.completed else _compatible(found.values(), wanted)
        if group is None:
            group = found.setdefault(json.dumps(wanted, sort_keys=True), (wanted, []))
        group[1].append(run)
    return sorted(found.values(), key=lambda group: -len(group[1]))


def _compatible(
    candidates: Iterable[tuple[Conditions, list[LoadedRun]]], recorded: Conditions
) -> tuple[Conditions, list[LoadedRun]] | None:
    return next(
        (
            group
            for group in candidates
            if all(d.value == NOT_RECORDED for d in differences(recorded, group[0]))
        ),
        None,
    )


def _bits(coverage: Mapping[str, Any] | None) -> dict[str, str] | None:
    if coverage is None:
        return None
    return {
        layer["name"]: f"{layer['bits']} bit {layer.get('scale')}" if layer["bits"] else "float"
        for layer in coverage["layers"]
    }


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
