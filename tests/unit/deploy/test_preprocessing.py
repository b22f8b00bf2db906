"""The network sees, to the byte, what Ultralytics' validation loader shows it in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.unit.data.images import encoded
from ultralytics.cfg import get_cfg

from qatval.data.decoding import decoded_image
from qatval.data.entry import Split
from qatval.deploy.card import Input
from qatval.deploy.preprocessing import network_input, placed
from qatval.train.dataset import SubsetDataset

SIZES = [(64, 64), (48, 64), (64, 31), (427, 640), (640, 425), (7, 200), (200, 1), (1, 1), (33, 9)]
FILES = {
    "grey.jpg": encoded("JPEG", "L"),
    "grey.png": encoded("PNG", "L"),
    "transparent.png": encoded("PNG", "RGBA"),
    "palette.png": encoded("PNG", "P"),
    "turned.jpg": encoded("JPEG", orientation=6),
    "mirrored.jpg": encoded("JPEG", orientation=2),
    "a.webp": encoded("WEBP"),
    "turned.avif": encoded("AVIF", orientation=6),
    "a.tif": encoded("TIFF"),
    "transparent.tiff": encoded("TIFF", "RGBA"),
    "a.bmp": encoded("BMP"),
}


def trained_on(folder: Path, name: str, side: int) -> Any:
    """Return what a run's validation loader yields for an image."""
    none = np.zeros((0, 4), np.float32)
    split = Split(
        "val",
        folder,
        np.array([1]),
        (name,),
        np.array([[1, 1]], np.int32),
        np.zeros(2, np.int64),
        np.zeros(0, np.int64),
        none,
    )
    args = get_cfg(overrides={"task": "detect", "mode": "train", "imgsz": side})
    sample = SubsetDataset(split, ("a",), args, batch=1)[0]
    return (sample["img"].float() / 255).numpy(), sample["ratio_pad"]


def check(folder: Path, name: str, side: int) -> None:
    expected, (gains, padding) = trained_on(folder, name, side)
    image = decoded_image((folder / name).read_bytes(), name)
    assert image is not None
    found, at = network_input(image, Input(imgsz=side, batch=1))
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()
    assert at.gains == gains
    assert (at.left, at.top) == padding


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_of_any_shape(tmp_path: Path, size: tuple[int, int], side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    check(tmp_path, "a.png", side)


@pytest.mark.parametrize("name", FILES)
def test_images_of_any_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    check(tmp_path, name, 64)


def test_colours_of_16_bits(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3), np.uint16)
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), noise)
        check(tmp_path, name, 64)


def test_an_odd_pixel_of_padding_goes_below_and_to_the_right() -> None:
    assert (placed(61, 64, 64).top, placed(61, 64, 64).height) == (1, 61)
    assert (placed(64, 61, 64).left, placed(64, 61, 64).width) == (1, 61)
