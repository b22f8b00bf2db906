"""From a decoded image to the network's input, as evaluation in a run does it.

Ultralytics does it there, in two places (`load_image` of its datasets, `LetterBox`); tests hold
this to the byte to what its validation loader yields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qatval.deploy.card import Input


@dataclass(frozen=True)
class Placement:
    """Where an image lies within the square that the network sees.

    Attributes:
        height, width: Of the resized image in px of the square.
        top, left: Of its first pixel, in the same.
        gains: By what the image's height and width were multiplied.
    """

    height: int
    width: int
    top: int
    left: int
    gains: tuple[float, float]


def placed(height: int, width: int, side: int) -> Placement:
    """Return where an image of some px lies within a square of ``side`` px."""
    ratio = side / max(height, width)
    new_height, new_width = (min(math.ceil(s * ratio), side) for s in (height, width))
    # Ultralytics' rounding: an odd pixel of padding goes below, or to the right.
    top, left = (round((side - s) / 2 - 0.1) for s in (new_height, new_width))
    gains = new_height / height, new_width / width
    return Placement(new_height, new_width, top, left, gains)


def network_input(image: NDArray[np.uint8], told: Input) -> tuple[NDArray[np.float32], Placement]:
    """Resize, pad and scale one image.

    Args:
        image: ``(height, width, 3)`` in the order blue, green, red, as `decoded_image` returns it.
        told: What the network takes.

    Returns:
        ``(3, imgsz, imgsz)`` in the order red, green, blue, and where the image is in it.
    """
    height, width = image.shape[:2]
    at = placed(height, width, told.imgsz)
    if (at.height, at.width) != (height, width):
        image = cv2.resize(image, (at.width, at.height), interpolation=cv2.INTER_LINEAR)
    square = np.full((told.imgsz, told.imgsz, 3), told.padding, np.uint8)
    square[at.top : at.top + at.height, at.left : at.left + at.width] = image
    planes = np.ascontiguousarray(square.transpose(2, 0, 1)[::-1])
    return planes.astype(np.float32) / np.float32(255), at
