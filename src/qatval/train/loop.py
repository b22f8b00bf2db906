"""The loop over epochs and batches: Ultralytics', but it can begin at any batch and end after any.

Ultralytics counts batches, steps and epochs in local variables of one long method, from the first
batch of an epoch on. What has to be the same after an interruption lies in attributes here, and
what a run never does is left out: timed training, early stopping, halved batches, a way back to an
earlier checkpoint after a NaN. `tests/validation/test_resume.py` holds the two loops to one result.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import DistributedSampler
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK
from ultralytics.utils.torch_utils import autocast

from qatval.core import interruption
from qatval.core.errors import QatvalError
from qatval.quant.averaging import unwrapped
from qatval.train.patches import own_launch

SAVE_EVERY = 600.0
"""Seconds after which the state of a training is saved within an epoch too."""

_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "unable to find an engine",
)


class Order:
    """The batches of image numbers of a loader, one epoch after the other, from any batch on.

    Takes the place of the sampler that an endless loader begins again for every epoch. A loader
    with worker processes is ahead of its training, into the next epoch too, so what an epoch's
    order was drawn from is kept until the training has come there.
    """

    def __init__(self, loader: Any) -> None:
        """Take the place of a loader's sampler of batches."""
        self._loader = loader
        self._batches = loader.batch_sampler.sampler
        self._rest: Iterator[list[int]] | None = None
        self._begun: deque[Tensor] = deque()
        self.drawn_from: Tensor | None = None
        loader.batch_sampler.sampler = self

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield what an interrupted epoch has left, or else the next epoch."""
        rest, self._rest = self._rest, None
        if rest is None:
            self._begun.append(self._source())
            rest = iter(self._batches)
        yield from rest

    def _source(self) -> Tensor:
        """Return what the next order comes from: a generator's state, or an epoch's number."""
        sampler = self._loader.sampler
        if isinstance(sampler, DistributedSampler):
            return torch.tensor([sampler.epoch])
        state: Tensor = self._loader.generator.get_state()
        return state

    def enter_epoch(self) -> None:
        """Say that the training has got the first batch of its next epoch."""
        self.drawn_from = self._begun.popleft()

    def begin_again(self) -> None:
        """Say that the loader begins anew; what it was ahead is lost."""
        self._rest = None
        self._begun.clear()
        self._loader.reset()

    def go_on(self, drawn_from: Tensor, done: int) -> None:
        """Draw an epoch's order again and go on in it.

        Args:
            drawn_from: `drawn_from` of that epoch.
            done: How many of its batches are done, at least one, and perhaps all.
        """
        loader, self.drawn_from = self._loader, drawn_from
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(int(drawn_from))
        else:
            loader.generator.set_state(drawn_from)
        # Not a list: with the end of its order torch draws one more that nobody looks at.
        self._rest = iter(self._batches)
        for _ in range(done):
            next(self._rest)
        # A new iterator draws from the generator, which the one that was there has done before.
        after = loader.generator.get_state()
        loader.iterator = loader._get_iterator()
        loader.generator.set_state(after)


class ResumableTrainer(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' trainer with a loop whose position is known.

    Attributes:
        epoch: Counted from 0.
        done: Batches of it that are done.
        last_step: Number of the batch, counted from 0 over all epochs, of the latest optimizer
            step; -1 before the first.
        mosaic_closed: Whether the epochs without mosaic have begun.
        order: The order of the training images.
    """

    order: Order
    accumulate: int
    tloss: dict[str, Tensor] | None

    def interrupted(self) -> bool:
        """Return whether there is an interrupted training to go on with."""
        raise NotImplementedError

    def load_state(self) -> bool:
        """Go to where an interrupted training was, if there is one."""
        raise NotImplementedError

    def save_state(self) -> None:
        """Keep everything that the rest of the training depends on."""
        raise NotImplementedError

    def finish(self, *, complete: bool) -> None:
        """Leave the weights as they are: at the end, or where something has ended the training."""
        raise NotImplementedError

    @property
    def batches_done(self) -> int:
        """How many batches are done in all epochs."""
        return self.epoch * len(self.train_loader) + self.done

    def train(self) -> None:
        """Train as Ultralytics does; of several processes all end when one is asked to.

        Raises:
            QatvalError: If the device runs out of memory. Ultralytics would go on with half the
                batch, which is another experiment.
        """
        try:
            if self.ddp:
                # Or Ultralytics removes what an interrupted training has left.
                self.resume = self.interrupted()
                with interruption.deferred(), own_launch():
                    super().train()
            elif LOCAL_RANK == -1:
                super().train()
            else:
                interruption.listen()
                super().train()
        except interruption.Interrupted:
            if LOCAL_RANK == -1:
                raise
            sys.exit(interruption.EXIT_CODE)
        except RuntimeError as error:
            if any(sign in str(error) for sign in _OUT_OF_MEMORY):
                remedy = f"out of memory: try --batch {max(self.batch_size // 2, 1)}"
                raise QatvalError(remedy) from error
            raise

    def _do_train(self) -> None:
        if self.world_size > 1:
            self._setup_ddp()
        self._setup_train()
        self.order = Order(self.train_loader)
        self._warmup = self._get_warmup_iterations(len(self.train_loader))
        self._full_accumulation = self.accumulate
        self.epoch, self.done, self.last_step = 0, 0, -1
        self.mosaic_closed = not self.args.close_mosaic
        self.train_time_start = time.time()
        self.optimizer.zero_grad()
        self.run_callbacks("on_train_start")
        # The last thing before the first batch: it settles what is drawn next.
        resumed = self.load_state()
        LOGGER.info(
            f"Going on in epoch {self.epoch + 1} of {self.epochs} after {self.done} batches"
            if resumed
            else f"Starting training for {self.epochs} epochs on "
            f"{len(self.train_loader.dataset)} images, {len(self.test_loader.dataset)} to "
            "validate on"
        )
        self._saved = time.monotonic()
        try:
            while not self.stop:
                with interruption.deferred():
                    whole = self._train_epoch()
                if not whole:
                    raise interruption.Interrupted("a signal to another process of the training")
                self._score_epoch()
                self.epoch, self.done = self.epoch + 1, 0
        except BaseException:
            self.finish(complete=False)
            raise
        finally:
            for loader in (self.train_loader, self.test_loader):
                loader.close()
        with interruption.deferred():
            self.finish(complete=True)
            self.run_callbacks("on_train_end")

    def _train_epoch(self) -> bool:
        """Do the rest of the epoch's batches, save the state behind them; False if asked to end."""
        if not self.done:
            self._begin_epoch()
        self._model_train()
        batches = iter(self.train_loader)
        last = len(self.train_loader) - 1
        for number in range(self.done, last + 1):
            batch = next(batches)
            if number == 0:
                self.order.enter_epoch()
            self._train_batch(batch)
            asked = self._asked_to_end()
            late = time.monotonic() - self._saved > SAVE_EVERY
            if RANK in {-1, 0} and (asked or late or number == last):
                self.save_state()
                self._saved = time.monotonic()
            if asked:
                return False
        criterion: Any = unwrapped(self.model).criterion
        if hasattr(criterion, "update"):
            criterion.update()
        self.lr = {f"lr/pg{n}": group["lr"] for n, group in enumerate(self.optimizer.param_groups)}
        self.run_callbacks("on_train_epoch_end")
        if RANK in {-1, 0}:
            self.ema.update_attr(
                self.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"]
            )
        return True

    def _begin_epoch(self) -> None:
        self.run_callbacks("on_train_epoch_start")
        with warnings.catch_warnings(action="ignore"):  # that no step came before it
            self.scheduler.step()
        if RANK != -1:
            self.train_loader.sampler.set_epoch(self.epoch)
        if not self.mosaic_closed and self.epoch >= self.epochs - self.args.close_mosaic:
            self.close_mosaic()
            self.order.begin_again()
        self.tloss = None

    def close_mosaic(self) -> None:
        """Go over to training images as they are, not four in one."""
        self.mosaic_closed = True
        self._close_dataloader_mosaic()

    def _train_batch(self, batch: dict[str, Any]) -> None:
        """Add the gradients of a batch, and take a step when there are enough."""
        self.run_callbacks("on_train_batch_start")
        number = self.batches_done
        self._warm_up(number)
        precision = torch.bfloat16 if self.args.amp == "bf16" else self.amp
        with autocast(precision, device=self.device.type):
            batch = self.preprocess_batch(batch)
            loss, self.loss_items = self.model(batch)
            self.loss = loss.sum()
            if RANK != -1:
                self.loss *= self.world_size
            self.loss_names = tuple(self.loss_items)
            self.tloss = (
                self.loss_items
                if self.tloss is None
                else {
                    name: (self.tloss[name] * self.done + loss) / (self.done + 1)
                    for name, loss in self.loss_items.items()
                }
            )
        self.scaler.scale(self.loss).backward()
        if number - self.last_step >= self.accumulate:
            self.optimizer_step()
            self.last_step = number
        self.done += 1
        self.run_callbacks("on_train_batch_end")

    def _warm_up(self, number: int) -> None:
        """Set accumulation, rates and momentum of a batch of the warm-up; the last is its end."""
        if not self._warmup or number > self._warmup:
            return
        args, span = self.args, [0, self._warmup]
        between = np.interp(number, span, [1, self._full_accumulation])
        self.accumulate = max(1, int(between.round()))
        for group in self.optimizer.param_groups:
            first = args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
            target = group["initial_lr"] * self.lf(self.epoch)
            group["lr"] = float(np.interp(number, span, [first, target]))
            if "momentum" in group:
                momenta = [args.warmup_momentum, args.momentum]
                group["momentum"] = float(np.interp(number, span, momenta))

    def _asked_to_end(self) -> bool:
        """Return whether a signal has come, to any of the processes that train together.

        They agree on it, or the others would wait for the one that has ended.
        """
        asked = interruption.requested()
        if self.world_size > 1:
            flag = torch.tensor(int(asked), device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            asked = bool(flag)
        return asked

    def _score_epoch(self) -> None:
        """Validate and keep what came out; interrupted in it, the epoch is validated again."""
        self._clear_memory(0.5)
        self.metrics, self.fitness = self.validate()
        interruption.check()  # in a library that has swallowed it
        self.stop |= self.epoch + 1 >= self.epochs
        with interruption.deferred():
            if RANK in {-1, 0}:
                self.save_metrics({**self.label_loss_items(self.tloss), **self.metrics, **self.lr})
                self.save_model()
                self.run_callbacks("on_model_save")
            self.run_callbacks("on_fit_epoch_end")
            self._clear_memory(0.5)
