"""What a detector sees in somebody's own pictures, drawn on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qatval.core.formatting import printable
from qatval.deploy.card import Card
from qatval.deploy.postprocessing import found_in, in_image
from qatval.deploy.preprocessing import network_input

Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From images, ``(batch, 3, imgsz, imgsz)``, to what a network answers."""

_QUALITY = 90
_LONGEST_SIDE = 65_500  # px that libjpeg writes
_LONGEST_NAME = 40  # characters
_SMALLEST_LETTER, _SMALLEST_LINE = 12, 2  # px
# Of the longer side of the picture, so that they look the same on all.
_LETTER, _LINE = 1 / 45, 1 / 320
# Okabe and Ito's colours for all kinds of sight, without black.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_DARK = {"#0072b2", "#009e73", "#d55e00"}  # white is read better on these than black


@dataclass(frozen=True)
class Seen:
    """A detection.

    Attributes:
        class_index, class_name: What it is.
        score: In [0, 1].
        box: x, y of the top left corner, width, height in px of the picture, clipped to it.
    """

    class_index: int
    class_name: str
    score: float
    box: tuple[float, float, float, float]


def seen_in(image: NDArray[np.uint8], answer: Answer, card: Card) -> list[Seen]:
    """Return what a network sees in a picture, the highest scores first.

    Args:
        image: As `decoded_image` returns it.
        answer: The network.
        card: How it is fed and what it answers.

    Raises:
        QatvalError: It answers something else.
    """
    one, at = network_input(image, card.input)
    images = np.repeat(one[None], card.input.batch or 1, axis=0)
    found = found_in(answer(images), card.output, len(card.class_names))[0]
    height, width = image.shape[:2]
    seen = []
    for (x, y, across, down), score, label in zip(
        in_image(found, at).tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
    ):
        # min and max in this order take what is no number for the border
        left, right = (round(max(0.0, min(float(width), side)), 1) for side in (x, x + across))
        top, bottom = (round(max(0.0, min(float(height), side)), 1) for side in (y, y + down))
        if right > left and bottom > top:
            box = (left, top, round(right - left, 1), round(bottom - top, 1))
            seen.append(Seen(label, card.class_names[label], round(score, 4), box))
    return sorted(seen, key=lambda detection: -detection.score)


def drawn(image: NDArray[np.uint8], seen: Sequence[Seen]) -> bytes:
    """Return a picture with boxes, names and scores on it as a JPEG file.

    Raises:
        OSError: A side is longer than a JPEG's can be.
    """
    if max(image.shape) > _LONGEST_SIDE:
        raise OSError(
            f"a JPEG of it cannot be written: its longer side has {max(image.shape)} px, at most "
            f"{_LONGEST_SIDE} are possible"
        )
    picture = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    canvas, longest = ImageDraw.Draw(picture), max(picture.size)
    line = max(_SMALLEST_LINE, round(longest * _LINE))
    font = ImageFont.load_default(max(_SMALLEST_LETTER, round(longest * _LETTER)))
    # The surest last, on top of all others; labels above all boxes.
    for detection in reversed(seen):
        x, y, width, height = detection.box
        colour = _colour(detection)
        canvas.rectangle((x, y, x + width, y + height), outline=colour, width=line)
    for detection in reversed(seen):
        name = printable(detection.class_name)[:_LONGEST_NAME]
        _label(canvas, font, f"{name} {detection.score:.2f}", detection, picture.size)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _label(
    canvas: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text: str,
    detection: Seen,
    size: tuple[int, int],
) -> None:
    """Write above a box, or into it where the picture ends, and never beyond the picture."""
    x, y, _, _ = detection.box
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    margin = max(1, round((bottom - top) / 6))
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0.0, min(x, size[0] - width))
    y = y - height if y >= height else y
    colour = _colour(detection)
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    ink = "white" if colour in _DARK else "black"
    canvas.text((x + margin - left, y + margin - top), text, fill=ink, font=font)


def _colour(detection: Seen) -> str:
    # Shifted every round: of COCO's classes person, chair and laptop would be alike.
    index = detection.class_index
    return _COLOURS[(index + index // len(_COLOURS)) % len(_COLOURS)]
