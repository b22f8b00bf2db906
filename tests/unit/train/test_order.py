"""The order of training images goes on in the middle of an epoch as it would have."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler
from ultralytics.data.build import InfiniteDataLoader

from qatval.train.loop import Order

EPOCHS = 4


Batches = list[tuple[int, int, list[int], torch.Tensor]]
"""Epoch, number in it, images, and what the epoch's order was drawn from."""


def a_loader(images: int, batch: int, *, rank: int | None = None, workers: int = 0) -> Any:
    data: Any = range(images)
    sampler = None
    if rank is not None:
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=3)
    return InfiniteDataLoader(
        data,
        batch_size=batch,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        shuffle=sampler is None,
        sampler=sampler,
        generator=torch.Generator().manual_seed(7),
    )


def epochs(loader: Any, order: Order, epoch: int = 0, done: int = 0, *, anew: int) -> Batches:
    """Go through the epochs as the training does; the loader begins anew before one of them."""
    seen: Batches = []
    for number in range(epoch, EPOCHS):
        if not done:
            if isinstance(loader.sampler, DistributedSampler):
                loader.sampler.set_epoch(number)
            if number == anew:
                order.begin_again()
        batches = iter(loader)
        for at in range(done, len(loader)):
            images = next(batches).tolist()
            if at == 0:
                order.enter_epoch()
            assert order.drawn_from is not None
            seen.append((number, at, images, order.drawn_from))
        done = 0
    return seen


def images_of(epoch: int, seen: Batches) -> list[int]:
    return sorted(image for number, _, images, _ in seen if number == epoch for image in images)


@given(
    images=st.integers(1, 12),
    batch=st.integers(1, 5),
    anew=st.integers(0, EPOCHS),
    rank=st.none() | st.integers(0, 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_goes_on(
    images: int, batch: int, anew: int, rank: int | None, data: st.DataObject
) -> None:
    loader = a_loader(images, batch, rank=rank)
    whole = epochs(loader, Order(loader), anew=anew)
    at = data.draw(st.integers(0, len(whole) - 1), "the last batch before the interruption")
    epoch, number, _, drawn_from = whole[at]
    loader = a_loader(images, batch, rank=rank)
    order = Order(loader)
    order.go_on(drawn_from, number + 1)
    rest = epochs(loader, order, epoch, number + 1, anew=anew)
    assert [batch[:3] for batch in rest] == [batch[:3] for batch in whole[at + 1 :]]


def test_an_epoch_has_every_image_once_with_workers_ahead() -> None:
    loader = a_loader(8, 1, workers=2)
    order = Order(loader)
    whole = epochs(loader, order, anew=2)
    loader.close()
    for epoch in range(EPOCHS):
        assert images_of(epoch, whole) == list(range(8))
    epoch, done, _, drawn_from = whole[8 + 2]
    order = Order(loader)
    order.go_on(drawn_from, done + 1)
    rest = epochs(loader, order, epoch, done + 1, anew=2)
    loader.close()
    assert [batch[:3] for batch in rest[:5]] == [batch[:3] for batch in whole[11:16]]
    for epoch in range(2, EPOCHS):
        assert images_of(epoch, rest) == list(range(8))
