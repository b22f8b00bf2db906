"""Boxes and names stand where something was seen, whatever a network answers."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.unit.deploy.files import card

from qatval.deploy.card import Input
from qatval.deploy.pictures import Seen, drawn, seen_in

GREY = np.full((60, 80, 3), 128, np.uint8)


def answering(*rows: list[float]) -> list[Seen]:
    def answer(images: np.ndarray) -> np.ndarray:
        assert images.shape == (1, 3, 64, 64)
        return np.array([rows], np.float32)

    return seen_in(GREY, answer, card(input=Input(imgsz=64, batch=1)))


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)), int)


def test_boxes_are_in_px_of_the_picture_and_end_at_its_border() -> None:
    # 80 x 60 px lie at 64 x 48 px, 8 px below the top
    first, second = answering([8, 16, 24, 32, 0.5, 1], [-9, -9, 90, 90, 0.9, 0])
    assert (first.class_name, first.score, first.box) == ("circle", 0.9, (0, 0, 80, 60))
    assert (second.class_name, second.score, second.box) == ("square", 0.5, (10, 10, 20, 20))


@pytest.mark.parametrize("side", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_boxes_that_are_none_do_no_harm(side: float) -> None:
    for place in range(4):
        row: list[float] = [8, 16, 24, 32, 0.5, 1]
        row[place] = side
        for seen in answering(row):
            assert 0 <= seen.box[0] < seen.box[0] + seen.box[2] <= 80
            assert 0 <= seen.box[1] < seen.box[1] + seen.box[3] <= 60
        drawn(GREY, answering(row))


def test_a_fixed_batch_is_filled() -> None:
    def answer(images: np.ndarray) -> np.ndarray:
        assert len(images) == 3
        return np.tile(np.array([[8, 16, 24, 32, 0.5, 1]], np.float32), (3, 1, 1))

    assert len(seen_in(GREY, answer, card(input=Input(imgsz=64, batch=3)))) == 1


def test_only_boxes_and_names_are_drawn() -> None:
    plain = pixels(drawn(GREY, []))
    assert np.abs(plain - 128).max() <= 3
    changed = np.abs(pixels(drawn(GREY, [Seen(0, "a", 0.9, (20, 30, 40, 20))])) - 128).max(axis=2)
    assert changed[40, 20] > 40  # the left side
    assert changed[49, 40] > 40  # the bottom
    assert changed[40, 40] < 10  # within
    assert changed[25, 22] > 40  # the label above
    assert changed[5:12].max() < 20


def test_labels_stay_within_the_picture() -> None:
    for box in ((0, 0, 80, 60), (70, 0, 10, 10), (0, 55, 5, 5)):
        changed = np.abs(pixels(drawn(GREY, [Seen(1, "name", 0.9, box)])) - 128).max(axis=2)
        assert (changed > 40).sum() > 100


def test_a_side_that_no_jpeg_has() -> None:
    with pytest.raises(OSError, match="has 65501 px, at most 65500 are possible"):
        drawn(np.zeros((1, 65_501, 3), np.uint8), [])
    drawn(np.zeros((1, 65_500, 3), np.uint8), [])


def test_any_name_can_be_written() -> None:
    for name in ("", "été", "猫", "a\nb\x1b[31m", "\ud800", "x" * 100_000):
        drawn(GREY, [Seen(3, name, 0.5, (10, 30, 20, 20))])


def test_a_card_may_name_a_threshold_of_its_own() -> None:
    output = msgspec.structs.replace(card().output, confidence=0.95)
    own = card(input=Input(imgsz=64, batch=1), output=output)
    row = np.array([[[8, 16, 24, 32, 0.9, 1]]], np.float32)
    assert seen_in(GREY, lambda _: row, own) == []
