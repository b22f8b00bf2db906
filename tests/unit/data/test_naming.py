"""Names of datasets: earned by their content, wherever it lies."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qatval.core.files import sha256_of
from qatval.data import naming, shapes
from qatval.data.coco import AnnotationIndex
from qatval.data.naming import name_of

OTHER = {"train": "a" * 64, "val": "b" * 64}


def index(images: int, annotations: int, categories: int) -> AnnotationIndex:
    """Return an index of these numbers; a name looks at nothing else of it."""
    return AnnotationIndex(
        image_ids=np.arange(images),
        sizes=np.zeros((images, 2), np.int32),
        file_names=(),
        owners=np.zeros(annotations, np.int32),
        classes=np.zeros(annotations, np.int32),
        boxes=np.zeros((annotations, 4)),
        areas=np.zeros(annotations),
        crowds=np.zeros(annotations, bool),
        category_ids=np.arange(categories),
        category_names=(),
    )


def coco(train_images: int = 118_287) -> dict[str, AnnotationIndex]:
    return {"train": index(train_images, 860_001, 80), "val": index(5_000, 36_781, 80)}


def test_coco_is_known_by_its_size_whatever_the_bytes() -> None:
    assert name_of(OTHER, coco(), drawn=False) == "coco2017"


def test_a_part_of_coco_is_not_coco() -> None:
    assert re.fullmatch(r"custom-[0-9a-f]{8}", name_of(OTHER, coco(128), drawn=False))


def test_other_annotations_have_another_name() -> None:
    one = name_of(OTHER, coco(128), drawn=False)
    assert name_of(OTHER, coco(128), drawn=False) == one
    assert name_of({**OTHER, "val": "c" * 64}, coco(128), drawn=False) != one


def test_a_manifest_alone_does_not_make_the_embedded_dataset() -> None:
    assert re.fullmatch(r"shapes-[0-9a-f]{8}", name_of(OTHER, coco(24), drawn=True))


def test_what_is_drawn_with_the_defaults_is_the_embedded_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its annotations, that is: pixels have random numbers of their own, and go unpainted."""
    monkeypatch.setattr(shapes, "_paint", lambda *_: np.zeros((1, 1, 3), np.uint8))
    shapes.draw_dataset(tmp_path / "shapes")
    digests = {
        split: sha256_of(tmp_path / "shapes" / "annotations" / f"instances_{split}2017.json")
        for split in ("train", "val")
    }
    assert digests == naming._EMBEDDED_ANNOTATIONS
    assert name_of(digests, coco(512), drawn=True) == "shapes"
