from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

CATEGORY_IDS = (90, 1, 18, 3, 44)  # unsorted and with gaps, as in COCO


def odd_document(seed: int, *, images: int, first_id: int) -> dict[str, Any]:
    """A COCO document with every oddity that real ones have."""
    rng = random.Random(seed)
    ids = rng.sample(range(first_id, first_id + 10 * images), images)
    records = [
        {
            "id": image_id,
            "file_name": f"{image_id:012d}.jpg" if place else f"été {image_id}.jpg",
            "height": rng.randrange(40, 640),
            "width": rng.randrange(40, 640),
            "license": 3,
            "flickr_url": "not needed",
        }
        for place, image_id in enumerate(ids)
    ]
    annotations: list[dict[str, Any]] = []

    def annotate(image: dict[str, Any], bbox: list[float], **more: Any) -> None:
        annotations.append(
            {
                "id": 1000 + len(annotations),
                "image_id": image["id"],
                "category_id": rng.choice(CATEGORY_IDS),
                "bbox": bbox,
                "area": round(rng.uniform(1, 900), 3),
                "iscrowd": 0,
                "segmentation": [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]],
            }
            | more
        )

    for image in records[: images * 9 // 10]:  # the rest stays without objects
        height, width = image["height"], image["width"]
        for _ in range(rng.randrange(1, 7)):
            x, y = rng.uniform(0, width - 10), rng.uniform(0, height - 10)
            annotate(image, [round(x, 2), round(y, 2), 9.25, round(rng.uniform(1, 9), 2)])
        odd: list[tuple[list[float], dict[str, Any]]] = [
            ([3, 4, 0, 5], {}),
            ([3, 4, 7, -2], {}),
            ([-5, -6, 20, 30], {}),
            ([width - 4, height - 4, 20, 30], {}),
            ([width + 1, 3, 5, 5], {}),
            ([-9, 3, 9, 5], {}),
            ([0, 0, width, height], {}),
            ([1, 1, 30, 30], {"iscrowd": 1, "segmentation": {"counts": [0, 9], "size": [3, 3]}}),
            ([1, 1, 0, 0], {"iscrowd": 1}),
            ([5.5, 6.5, 7.5, 8.5], {"category_id": 44}),
            ([5.5, 6.5, 7.5, 8.5], {"category_id": 44}),
            ([5.5, 6.5, 7.5, 8.5], {"category_id": 18}),
        ]
        for bbox, more in rng.sample(odd, rng.randrange(len(odd))):
            annotate(image, bbox, **more)
    rng.shuffle(annotations)
    return {
        "info": {},
        "images": records,
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}", "supercategory": ""} for c in CATEGORY_IDS],
    }


@functools.cache
def jpeg(height: int, width: int) -> bytes:
    """Return a grey JPEG."""
    found, content = cv2.imencode(".jpg", np.full((height, width, 3), 114, np.uint8))
    assert found
    return bytes(content)


CocoWriter = Callable[..., Path]


@pytest.fixture
def write_coco(tmp_path: Path) -> CocoWriter:
    """Write documents as a COCO root with a grey JPEG for each image."""

    def write(
        train: dict[str, Any] | None = None,
        val: dict[str, Any] | None = None,
        root: Path = tmp_path / "coco",
    ) -> Path:
        documents = {
            "train": train or odd_document(1, images=40, first_id=1),
            "val": val or odd_document(2, images=20, first_id=5000),
        }
        (root / "annotations").mkdir(parents=True)
        for split, document in documents.items():
            text = json.dumps(document)
            (root / "annotations" / f"instances_{split}2017.json").write_text(text)
            (root / f"{split}2017").mkdir()
            for image in document["images"]:
                path = root / f"{split}2017" / image["file_name"]
                path.write_bytes(jpeg(image["height"], image["width"]))
        return root

    return write


@pytest.fixture
def documents() -> dict[str, dict[str, Any]]:
    return {
        "train": odd_document(1, images=40, first_id=1),
        "val": odd_document(2, images=20, first_id=5000),
    }


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"
