"""Training images that cannot fill the batches are refused before anything is done."""

from __future__ import annotations

import pytest

from qatval.core.errors import QatvalError
from qatval.train.dataset import refuse_unfit


def asked(batch: int, imgsz: int, **more: float) -> dict[str, float]:
    return {"batch": batch, "imgsz": imgsz, **more}


@pytest.mark.parametrize(
    ("images", "calibration", "arguments", "devices", "trains", "message"),
    [
        (3, 3, asked(16, 64), 1, True, "3 training images are less than one batch of 16"),
        (15, 15, asked(16, 640), 1, True, "give --batch 15 or less"),
        (17, 16, asked(16, 32), 1, True, "17 training images in batches of 16 end with"),
        (16, 16, asked(1, 32), 1, True, "in batches of 1 end with a batch of one"),
        (17, 17, asked(16, 32), 1, False, "17 calibration images in batches of 16"),
        (1, 1, asked(16, 20), 1, False, "1 calibration images"),
        (66, 64, asked(32, 32), 2, True, "33 training images in batches of 16"),
        (17, 16, asked(16, 96, multi_scale=0.5), 1, True, "at 96 px"),
    ],
)
def test_refused(
    images: int,
    calibration: int,
    arguments: dict[str, float],
    devices: int,
    trains: bool,
    message: str,
) -> None:
    with pytest.raises(QatvalError, match=message):
        refuse_unfit(images, calibration, arguments, devices=devices, trains=trains)


@pytest.mark.parametrize(
    ("images", "calibration", "arguments", "trains"),
    [
        (16, 16, asked(16, 32), True),
        (17, 17, asked(16, 33), True),
        (17, 17, asked(16, 64), True),
        (18, 18, asked(16, 32), True),
        (3, 3, asked(16, 64), False),
        (1, 1, asked(16, 64), False),
    ],
)
def test_taken(images: int, calibration: int, arguments: dict[str, float], trains: bool) -> None:
    refuse_unfit(images, calibration, arguments, devices=1, trains=trains)
