"""What of a run has to be equal in comparable ones; see `qatval.analysis.comparability`.

It is taken from the summary's JSON as it is, so that a setting which this version does not know
still tells runs apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from qatval.core.errors import UsageError
from qatval.quant.methods import method

ACROSS = ("machine", "versions")
"""Conditions that a user can let differ: the kind of device, and the libraries' versions."""

_LIBRARIES = ("qatval", "torch", "ultralytics", "brevitas")

# What a summary says of a part of the method beside its settings: whether it has it, and what came
# of it. All else is a setting, so that one which this version does not know tells runs apart too.
_MEASURED = {
    "enabled",
    "how",
    "updates",
    "effective_decay",
    "codes_differing_from_raw",
    "changes",
}

_DRAWN = ("seed", "image_ids_sha256")


def conditions(recorded: Mapping[str, Any], across: Collection[str] = ()) -> dict[str, Any]:
    """Return what must be equal in comparable runs, of a summary as the JSON that was read.

    Nested as in the summary, but for ``parts``: what must be equal in runs that both have it, by
    its dotted name. None stands for what is not recorded.

    Args:
        recorded: The summary.
        across: Which of `ACROSS` are no conditions.
    """
    model, dataset, training = recorded["model"], recorded["dataset"], recorded["training"]
    quantization = {k: v for k, v in recorded["quantization"].items() if v is not None}
    coverage = quantization.pop("coverage", None)
    layers = coverage and {layer["name"]: _bits(layer) for layer in coverage["layers"]}
    quantization.setdefault("boundary_bit_width", "as everywhere")
    identity = dataset.get("identity")
    found: dict[str, Any] = {
        "model": {
            "variant": model["variant"],
            "imgsz": model["imgsz"],
            "checkpoint_sha256": model.get("checkpoint_sha256"),
        },
        "training": {
            "epochs": training["epochs"],
            "batch": training["batch"],
            "batchnorm": training.get("batchnorm") or "running",
            "device": device_kind(recorded),
        },
        "dataset": {
            "train_images": dataset["train_images"],
            "val_images": dataset["val_images"],
            "identity": None if identity is None else comparable_identity(identity),
        },
        "quantization": quantization | {"layers": layers},
        "evaluation": recorded.get("evaluation"),
        "environment": library_versions(recorded),
        "parts": method_settings(recorded) | _draw(recorded),
    }
    if "machine" in across:
        del found["training"]["device"]
    if "versions" in across:
        del found["environment"]
    return found


def device_kind(recorded: Mapping[str, Any]) -> str | None:
    """Return on what a run was made: ``"cpu"``, ``"GPU"``, ``"2 GPUs"``; None where unknown."""
    name = str(recorded["training"]["device"])
    if name == "auto":  # asked for, by a run that did not get to its training
        return None
    indices = name.removeprefix("cuda").removeprefix(":").split(",")
    if not (name == "cuda" or all(index.isdigit() for index in indices)):
        return name
    return "GPU" if len(indices) == 1 else f"{len(indices)} GPUs"


def library_versions(recorded: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the versions of what computes, without what says for which device it was built."""
    environment = recorded.get("environment") or {}
    return {
        name: str(environment[name]).split("+")[0] if environment.get(name) else None
        for name in _LIBRARIES
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
        "train": {k: v for k, v in train.items() if k not in _DRAWN},
    }


def method_settings(recorded: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what of its method a run has and a comparable one may lack, with its settings.

    By dotted name: each part, and the training where there is one.

    A part goes by its name in the method's: parts of one kind under different names are different
    parts, whose settings are what sets them apart.
    """
    training, described = recorded["training"], recorded["method"]
    named: dict[str, list[str]] = defaultdict(list)
    for kind, name in _kinds(described["variant"]):
        named[kind].append(name)
    statistics = described.get("bn") or {}
    how = statistics.get("how") or "reestimated"
    found: dict[str, Mapping[str, Any]] = {}
    for kind, field, record in (
        ("averaging", "ema", described["ema"]),
        ("correction", "qc", described["qc"]),
        (how, "bn" if how == "reestimated" else how, statistics),
        ("teacher", "teacher", described.get("teacher")),
        ("rounding", "rounding", described.get("rounding")),
    ):
        if record and record.get("enabled", True):
            found[named[kind][0] if named[kind] else field] = record
    for kind, field in (("stabilizer", "stabilizers"), ("post_training", "post_training")):
        records = described.get(field) or ()
        names = (
            named[kind]
            if len(named[kind]) == len(records)
            else [r["implementation"] for r in records]
        )
        found |= {name: {"settings": r["settings"]} for name, r in zip(names, records, strict=True)}
    parts = {
        f"method.{name}": {k: v for k, v in record.items() if k not in _MEASURED}
        for name, record in found.items()
    }
    if described.get("training") != "none":
        device = device_kind(recorded)
        # on a CPU AMP has no meaning, whatever was asked for
        amp = False if device == "cpu" else training["amp"] if device else None
        parts["training"] = {"amp": amp, "overrides": training["overrides"]}
    return parts


def _draw(recorded: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return which training images the seed drew: another seed draws others, the same one none."""
    train = (recorded["dataset"].get("identity") or {}).get("train")
    if not isinstance(train, Mapping) or train.get("seed") is None:
        return {}
    field = f"dataset.identity.train (seed {recorded['training']['seed']})"
    return {field: {name: train.get(name) for name in _DRAWN}}


def _kinds(name: str) -> Iterator[tuple[str, str]]:
    """Yield kind and name of each part of a method, nothing of one that is not known here."""
    try:
        yield from ((part.kind, part.name) for part in method(name).parts)
    except UsageError:
        return


def _bits(layer: Mapping[str, Any]) -> str:
    if not layer["bits"]:
        return "float"
    activations = layer.get("activation_bits")
    of_input = f", input {activations} bit" if activations else ""
    return f"{layer['bits']} bit {layer.get('scale')}{of_input}"
