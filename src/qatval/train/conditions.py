"""What a training was begun with, so that nothing else goes on with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, sha256_of
from qatval.data.subset import open_subset
from qatval.train.trajectory import TrainingPlan

_NAME = "conditions.json"


def refuse_other(directory: Path, plan: TrainingPlan, arguments: Mapping[str, Any]) -> None:
    """Refuse to go on with a training that was begun under other conditions.

    Paths may have changed: of what they lead to the content counts.

    Args:
        directory: Work directory in which `record_conditions` has left those of its training.
        plan: What is to be trained.
        arguments: Ultralytics' training arguments.

    Raises:
        QatvalError: It names the first condition that differs.
    """
    path = directory / _NAME
    try:
        was: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise QatvalError(
            f"{path} cannot be read: expected what the training in hand was begun with ({error}); "
            "begin the run anew with --restart"
        ) from error
    now = _conditions(plan, arguments)
    for name in (*was, *now):
        if was.get(name) != now.get(name):
            raise QatvalError(
                f"the training in {directory} was begun with {name} {was.get(name)!r}, now it is "
                f"{now.get(name)!r}: give the same again, or begin the run anew with --restart"
            )


def record_conditions(directory: Path, plan: TrainingPlan, arguments: Mapping[str, Any]) -> None:
    """Write down what a training is begun with, for `refuse_other`."""
    content = msgspec.json.format(msgspec.json.encode(_conditions(plan, arguments)))
    atomic_write(directory / _NAME, content)


def _conditions(plan: TrainingPlan, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that a training depends on, by names such as ``quantization.scale``."""
    record = {**msgspec.to_builtins(plan), **arguments}
    for name in ("start_value", "fp32_value"):  # measured again, on a GPU not to the last digit
        del record[name]
    paths = {name: record.pop(name) for name in ("subset", "checkpoint", "reference")}
    if plan.quantization is not None and plan.reference is not None:
        # Made from the reference, on a GPU perhaps not to the bit; its weights are in the state.
        del paths["checkpoint"]
    record["subset"] = _digest(dict(open_subset(Path(paths.pop("subset"))).identity))
    for name, path in paths.items():
        record[name] = sha256_of(Path(path)) if path and Path(path).is_file() else None
    # As it will be read again: lists for tuples.
    return msgspec.json.decode(msgspec.json.encode(dict(_flat(record))), type=dict[str, Any])


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _digest(record: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(record, order="sorted")).hexdigest()
