"""A subset as Ultralytics reads it: images where they lie, labels from the index.

Ultralytics would look for one text file per image and keep a ``.cache`` beside them, a pickle
that it loads without asking, and take an ``.npy`` file beside an image for it. Overriding what
finds images and labels takes all of it away: nothing is written or removed next to the data,
nothing there is executed, and what is trained on is the image that was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from ultralytics.data.dataset import YOLODataset

from qatval.core.errors import QatvalError
from qatval.data.subset import Split
from qatval.train.models import MEMORY_FORMAT

STRIDE = 32
"""Of the coarsest feature maps, in px of the network's input; the same for every family."""


def refuse_unfit(
    images: int, calibration: int, arguments: Mapping[str, Any], *, devices: int, trains: bool
) -> None:
    """Refuse batches that the training images cannot fill, before anything is done with them.

    Ultralytics would train with a smaller batch than it was told. And where the network sees 1 x 1
    px at its coarsest, BatchNorm has no variance of a single image: neither a training nor the
    statistics that every run measures on its calibration images may end with a batch of one.

    Args:
        images: How many to train on.
        calibration: How many of them are calibration images.
        arguments: Ultralytics' arguments (batch, imgsz).
        devices: How many share a batch of the training.
        trains: Whether anything is trained.

    Raises:
        QatvalError: It says how many there are, how many it takes, and what to change.
    """
    batch, imgsz = arguments["batch"], arguments["imgsz"]
    if trains and images < batch:
        raise QatvalError(
            f"{images} training images are less than one batch of {batch}: give --batch {images} "
            "or less, or more images"
        )
    side = math.ceil(imgsz / STRIDE) * STRIDE
    smallest = int(side * (1 - arguments.get("multi_scale", 0.0)))
    uses = {"calibration": (side, calibration, batch)}
    if trains:
        uses["training"] = (smallest, math.ceil(images / devices), max(batch // devices, 1))
    for use, (px, count, size) in uses.items():
        if px < 2 * STRIDE and (count == 1 or (count % size or size) == 1):
            raise QatvalError(
                f"{count} {use} images in batches of {size} end with a batch of one, of which "
                f"BatchNorm has no variance at {imgsz} px (it sees 1 x 1 px): give --imgsz "
                f"{2 * STRIDE} or more, or a --batch that leaves no single image"
            )


_NO_FILE = Path("/dev/null/none")


class UnreadableImageError(QatvalError):
    """An image that passed for sound cannot be decoded."""

    def __init__(self, said: str) -> None:
        """Keep what is said; of a worker process torch hands on the text of a traceback."""
        super().__init__(said.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class SubsetDataset(YOLODataset):  # type: ignore[misc]
    """Images and boxes of one split, letterboxed to a square.

    Every evaluation, within training and after it, sees images padded to the same square;
    Ultralytics' ``rect`` batches would pad by batch and shift the mAP by some tenths of a point.
    """

    def __init__(
        self,
        split: Split,
        class_names: tuple[str, ...],
        args: Any,
        *,
        batch: int,
        augment: bool = False,
    ) -> None:
        """Present a split.

        Args:
            split: Images and boxes.
            class_names: Names by class index.
            args: Ultralytics' training arguments; imgsz is the side of the square in pixels.
            batch: Images per batch.
            augment: Whether Ultralytics' training augmentation applies.
        """
        self._split = split
        super().__init__(
            img_path=str(split.image_dir),
            imgsz=args.imgsz,
            augment=augment,
            hyp=args,
            batch_size=batch,
            rect=False,
            data={"names": dict(enumerate(class_names)), "channels": 3},
            task="detect",
        )
        self.npy_files = [_NO_FILE] * len(self.im_files)

    def load_image(self, i: int, *args: Any, **more: Any) -> Any:
        """Load an image as Ultralytics does.

        Raises:
            UnreadableImageError: It is damaged inside, gone or replaced since it was looked at.
        """
        try:
            return super().load_image(i, *args, **more)
        except (FileNotFoundError, cv2.error) as error:
            raise UnreadableImageError(
                f"{self.im_files[i]}: cannot be decoded; 'qatval dataset check --verify' decodes "
                "every image and lists the damaged"
            ) from error

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate as Ultralytics does, with the images' channels last in memory."""
        collated: dict[str, Any] = YOLODataset.collate_fn(batch)
        collated["img"] = collated["img"].contiguous(memory_format=MEMORY_FORMAT)
        return collated

    def get_img_files(self, img_path: str) -> list[str]:
        """Return the images' paths in the split's order."""
        return [f"{img_path}/{name}" for name in self._split.file_names]

    def get_labels(self) -> list[dict[str, Any]]:
        """Return Ultralytics' label record for each image, without reading a file."""
        split = self._split
        labels = []
        for i, im_file in enumerate(self.im_files):
            own = slice(split.offsets[i], split.offsets[i + 1])
            labels.append(
                {
                    "im_file": im_file,
                    "shape": tuple(int(side) for side in split.sizes[i]),
                    "cls": split.classes[own].astype("float32")[:, None],
                    "bboxes": split.boxes[own],
                    "segments": [],
                    "keypoints": None,
                    "normalized": True,
                    "bbox_format": "xywh",
                }
            )
        return labels
