"""The state of an unfinished training: one file from which it goes on as if nothing had been.

It is saved behind the last batch of every epoch, before the epoch's validation, behind any batch
after which a signal has asked to end, and every ten minutes in between. A training that ends in a
validation goes on with that validation: what it changes, weights of the best epoch and history,
comes out of the state again.

On a CPU, where images are loaded by the training's own process, what goes on from the state is what
would have come without an end, to the last bit. Elsewhere these differ:

- A GPU adds gradients up in another order every time.
- Worker processes augment images with random numbers and mosaic buffers of their own, which are
  lost: those of the batches after the state are drawn anew. Which images make up a batch is
  kept for the rest of the epoch.
- Of several GPUs' processes the first one writes, and all read it. Between two validations
  BatchNorm statistics differ between processes; all go on with the first one's. The others'
  random numbers are drawn anew.

Nothing in the file is code: tensors, and JSON as their metadata.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from ultralytics.utils import RANK

from qatval.core.errors import QatvalError
from qatval.core.files import replacing
from qatval.core.measurements import EpochRecord
from qatval.quant.averaging import unwrapped
from qatval.quant.methods.part import Weights

if TYPE_CHECKING:
    from qatval.train.trainer import QatTrainer

NAME = "state.safetensors"
"""File of the state in a work directory."""

_Numpy = tuple[str, list[int], int, int, float]
_Python = tuple[int, tuple[int, ...], float | None]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """What of a state is no tensor.

    Attributes:
        epoch, done, last_step, mosaic_closed: As in `ResumableTrainer`.
        steps: Optimizer steps taken.
        seconds: Since the training began, without the time between two processes.
        peak_memory_mb: The most memory that a process of the training has had.
        groups: Numbers of the optimizer's groups: learning rates, momenta.
        scaler: State of the gradient scaler.
        buffer: Images that mosaics are made of, the oldest first.
        python, numpy: States of the random generators.
        best: The best value so far, of all weights that are scored.
        history: Epochs so far.
    """

    epoch: int
    done: int
    last_step: int
    mosaic_closed: bool
    steps: int
    seconds: float
    peak_memory_mb: int | None
    groups: list[dict[str, float]]
    scaler: dict[str, Any]
    buffer: list[int]
    python: _Python
    numpy: _Numpy
    best: dict[Weights, float]
    history: dict[Weights, list[EpochRecord]]


def steps_done(directory: Path) -> int | None:
    """Return how many optimizer steps the unfinished training in a work directory has behind it.

    Returns:
        None if there is no training to go on with.

    Raises:
        QatvalError: If its state is damaged.
    """
    found = _read(directory)
    return None if found is None else found[0].steps


def remove(directory: Path) -> None:
    """Remove the state of a training that needs it no more."""
    (directory / NAME).unlink(missing_ok=True)


def save(directory: Path, trainer: QatTrainer) -> None:
    """Write a trainer's state into its work directory, in the place of the one before.

    Raises:
        QatvalError: If it cannot be written.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(trainer)}
    metadata = {"position": msgspec.json.encode(_position(trainer)).decode()}
    path = directory / NAME
    try:
        with replacing(path) as file:
            safetensors.torch.save_file(tensors, file, metadata)
    except safetensors.SafetensorError as error:
        raise QatvalError(
            f"cannot write {path}: {error}; give a folder with space left, and the same command "
            "goes on from the state before"
        ) from error


def load(directory: Path, trainer: QatTrainer) -> bool:
    """Bring a trainer that has been set up, and has done nothing yet, to the state it was in.

    Returns:
        Whether there is a state.

    Raises:
        QatvalError: If the state is damaged, or of another training.
    """
    found = _read(directory, with_tensors=True)
    if found is None:
        return False
    try:
        _restore(trainer, *found)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise _damaged(directory, f"{type(error).__name__}: {error}") from error
    return True


def _read(
    directory: Path, *, with_tensors: bool = False
) -> tuple[Position, dict[str, Tensor]] | None:
    path = directory / NAME
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            position = msgspec.json.decode(metadata["position"], type=Position)
            names = file.keys() if with_tensors else ()
            return position, {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        return None
    except (OSError, safetensors.SafetensorError, KeyError, msgspec.DecodeError) as error:
        raise _damaged(directory, str(error)) from error


def _damaged(directory: Path, why: str) -> QatvalError:
    return QatvalError(
        f"{directory / NAME} is damaged or of another version: expected the state of this "
        f"training ({' '.join(why.split())}); begin the run anew with --restart"
    )


def _tensors(trainer: QatTrainer) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that the rest of the training depends on, by its name in the file."""
    model = unwrapped(trainer.model)
    assert trainer.tloss is not None
    parts: dict[str, Mapping[str, Tensor]] = {
        "model": model.state_dict(),
        "average": trainer.ema.ema.state_dict(),
        "gradients": {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        # They are views of one tensor, which the format does not take.
        "losses": {name: loss.clone() for name, loss in trainer.tloss.items()},
        "tables": {name: _encoded(text) for name, text in trainer.log.tables.items()},
        "random": _random_states(trainer),
    }
    for number, values in trainer.optimizer.state_dict()["state"].items():
        parts[f"optimizer.{number}"] = {k: v for k, v in values.items() if v is not None}
    for number, stabilizer in enumerate(trainer.stabilizers):
        parts[f"stabilizer.{number}"] = stabilizer.state()
    if trainer.tracker is not None:
        parts["tracker"] = trainer.tracker.state()
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            yield f"{part}/{name}", tensor


def _position(trainer: QatTrainer) -> Position:
    algorithm, keys, at, has_gauss, gauss = np.random.get_state(legacy=True)
    return Position(
        epoch=trainer.epoch,
        done=trainer.done,
        last_step=trainer.last_step,
        mosaic_closed=trainer.mosaic_closed,
        steps=trainer.ema.updates,
        seconds=time.time() - trainer.train_time_start,
        peak_memory_mb=trainer.peak_memory_mb(),
        groups=[_numbers(group) for group in trainer.optimizer.param_groups],
        scaler=trainer.scaler.state_dict(),
        buffer=list(trainer.train_loader.dataset.buffer),
        python=random.getstate(),
        numpy=(str(algorithm), np.asarray(keys).tolist(), int(at), int(has_gauss), float(gauss)),
        best=trainer.best_values,
        history=trainer.log.history,
    )


def _restore(trainer: QatTrainer, position: Position, tensors: Mapping[str, Tensor]) -> None:
    model: Any = unwrapped(trainer.model)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        part, _, name = name.partition("/")
        parts[part][name] = tensor
    _copy(parts["model"], model.state_dict())
    _copy(parts["average"], trainer.ema.ema.state_dict())
    trainer.ema.updates = position.steps
    for name, gradient in parts["gradients"].items():
        parameter = model.get_parameter(name)
        parameter.grad = _laid_out_as(parameter, gradient)
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    values = {
        n: {k: _laid_out_as(p, v) for k, v in found.items()}
        for n, p in enumerate(parameters)
        if (found := parts[f"optimizer.{n}"])
    }
    groups = trainer.optimizer.state_dict()["param_groups"]
    groups = [{**own, **was} for own, was in zip(groups, position.groups, strict=True)]
    trainer.optimizer.load_state_dict({"state": values, "param_groups": groups})
    trainer.scaler.load_state_dict(position.scaler)
    trainer.scheduler.last_epoch = position.epoch
    for number, stabilizer in enumerate(trainer.stabilizers):
        stabilizer.restore(parts[f"stabilizer.{number}"])
    if trainer.tracker is not None:
        trainer.tracker.restore(parts["tracker"])
    if getattr(model, "criterion", None) is None:
        model.criterion = model.init_criterion()
    if hasattr(model.criterion, "update"):
        for _ in range(position.epoch):
            model.criterion.update()

    trainer.epoch, trainer.done = position.epoch, position.done
    trainer.last_step = position.last_step
    trainer.tloss = {name: loss.to(trainer.device) for name, loss in parts["losses"].items()}
    trainer.loss_names = tuple(trainer.tloss)
    trainer.train_time_start = time.time() - position.seconds
    trainer.memory_before = position.peak_memory_mb
    trainer.best_values = dict(position.best)
    if RANK in {-1, 0}:
        tables = {name: _decoded(text) for name, text in parts["tables"].items()}
        trainer.log.restore(position.history, tables)

    dataset = trainer.train_loader.dataset
    for image in position.buffer:
        dataset.load_image(image)
    if position.mosaic_closed:
        trainer.close_mosaic()
    states = parts["random"]
    trainer.order.go_on(states["order"], position.done)
    if RANK > 0:
        seed = hash((trainer.args.seed, RANK, trainer.batches_done)) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return
    random.setstate(position.python)
    algorithm, keys, at, has_gauss, gauss = position.numpy
    np.random.set_state((algorithm, np.array(keys, np.uint32), at, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], trainer.device)


def _random_states(trainer: QatTrainer) -> dict[str, Tensor]:
    assert trainer.order.drawn_from is not None
    states = {"torch": torch.get_rng_state(), "order": trainer.order.drawn_from}
    if trainer.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(trainer.device)
    return states


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in group.items() if isinstance(value, float)}


def _copy(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names.

    In place: that keeps their layout in memory, and of a quantized model `load_state_dict` would
    make every quantizer anew.
    """
    if saved.keys() != own.keys():
        raise KeyError(sorted(saved.keys() ^ own.keys())[0])
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != saved[name].shape:
                raise ValueError(f"'{name}' has shape {tuple(saved[name].shape)}")
            tensor.copy_(saved[name])


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return what belongs to a parameter in the parameter's layout, which fused kernels rely on."""
    if value.dim() == 0 or value.shape != parameter.shape:  # a count of steps
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _encoded(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _decoded(text: Tensor) -> str:
    return text.numpy().tobytes().decode()
