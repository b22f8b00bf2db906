"""The embedded dataset looks like COCO, is the same everywhere, and is never half drawn."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from qatval.core.errors import QatvalError
from qatval.data import shapes
from qatval.data.scenes import SAMPLES, UNIT, coverage, polygon_area
from qatval.data.shapes import draw_dataset, read_manifest

TRAIN, VAL = 120, 24

# Of the annotation files that `draw_dataset(out, train_images=120, val_images=24)` writes. They
# change only with shapes.VERSION, and the embedded checkpoint is trained again then.
DIGESTS = {
    "train": "79eda114facece7f10521d480268c413930edb389953dc6b2fca7b8433d6a0dd",
    "val": "5b227c29bb1c02fe3b3c8383cfdd6d2c51821c40c0b0bd2a5b029c0fea2a20dc",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "drawn"
    draw_dataset(out, train_images=TRAIN, val_images=VAL)
    return out


@pytest.fixture(scope="module")
def documents(root: Path) -> dict[str, dict[str, Any]]:
    return {
        split: json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
        for split in ("train", "val")
    }


def by_image(document: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_annotations_have_the_same_bytes_everywhere(root: Path, split: str) -> None:
    content = (root / "annotations" / f"instances_{split}2017.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == DIGESTS[split]


def test_layout_and_manifest(root: Path, documents: dict[str, dict[str, Any]]) -> None:
    assert sorted(path.name for path in root.iterdir()) == [
        "annotations",
        "qatval-dataset.json",
        "train2017",
        "val2017",
    ]
    manifest = read_manifest(root)
    assert manifest is not None
    assert (manifest["name"], manifest["seed"], manifest["size"]) == ("shapes", 0, 128)
    for split, count in (("train", TRAIN), ("val", VAL)):
        document = documents[split]
        assert set(document) == {"info", "licenses", "images", "annotations", "categories"}
        assert len(document["images"]) == count == manifest[f"{split}_images"]
        for image in document["images"]:
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            pixels = cv2.imread(str(root / f"{split}2017" / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
            assert max(pixels.shape) == 128
            assert pixels.std() > 3


def test_it_has_what_makes_coco_awkward(documents: dict[str, dict[str, Any]]) -> None:
    document = documents["train"]
    category_ids = [category["id"] for category in document["categories"]]
    assert np.diff(category_ids).max() > 1
    ids = [a["id"] for d in documents.values() for a in d["annotations"]]
    assert len(set(ids)) == len(ids)
    image_ids = [image["id"] for d in documents.values() for image in d["images"]]
    assert len(set(image_ids)) == len(image_ids)
    assert np.diff(sorted(image_ids)).max() > 1
    annotations = document["annotations"]
    assert {a["category_id"] for a in annotations} == set(category_ids)
    assert any(a["iscrowd"] for a in annotations)
    empty = sum(not found for found in by_image(document).values())
    assert 0.01 < empty / TRAIN < 0.12
    sides = np.array([max(a["bbox"][2:]) for a in annotations])
    assert (sides < 22).mean() > 0.15
    assert (sides > 40).mean() > 0.15
    shapes_seen = {
        (i["width"] > i["height"]) - (i["width"] < i["height"]) for i in document["images"]
    }
    assert shapes_seen == {-1, 0, 1}


def test_boxes_and_areas_fit_the_segmentations(documents: dict[str, dict[str, Any]]) -> None:
    document = documents["train"]
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    for annotation in document["annotations"]:
        height, width = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
        segmentation = annotation["segmentation"]
        if annotation["iscrowd"]:
            assert segmentation["size"] == [height, width]
            rle = coco_mask.frPyObjects(segmentation, height, width)
            assert coco_mask.area(rle) == annotation["area"]
            # The box fits the outlines; their thinnest tips cover no pixel by half.
            np.testing.assert_allclose(coco_mask.toBbox(rle), annotation["bbox"], atol=3)
        else:
            (points,) = segmentation
            corners = np.reshape(points, (-1, 2))
            np.testing.assert_array_equal(corners.min(axis=0), (x, y))
            np.testing.assert_array_equal(corners.max(axis=0), (x + w, y + h))
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
            assert coco_mask.area(rle) == pytest.approx(annotation["area"], rel=0.2, abs=12)


def test_images_depend_on_seed_and_place_alone(root: Path, tmp_path: Path) -> None:
    draw_dataset(tmp_path / "fewer", train_images=4, val_images=2)
    draw_dataset(tmp_path / "other", train_images=4, val_images=2, seed=1)
    fewer = sorted((tmp_path / "fewer" / "train2017").iterdir())
    for path in fewer:
        assert path.read_bytes() == (root / "train2017" / path.name).read_bytes()
    other = sorted((tmp_path / "other" / "train2017").iterdir())
    assert [p.read_bytes() for p in other] != [p.read_bytes() for p in fewer]


def test_size_is_that_of_the_long_side(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "large", train_images=3, val_images=0, size=320)
    for path in (tmp_path / "large" / "train2017").iterdir():
        assert max(cv2.imread(str(path)).shape) == 320


def test_a_complete_dataset_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw_dataset(out, train_images=2, val_images=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    draw_dataset(out, train_images=2, val_images=1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(QatvalError, match="drawn with seed 0; delete the folder"):
        draw_dataset(out, train_images=2, val_images=1, seed=5)


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(QatvalError, match="expected an empty or new folder"):
        draw_dataset(tmp_path, train_images=1, val_images=1)
    with pytest.raises(QatvalError, match="expected an empty or new folder"):
        draw_dataset(tmp_path / "thesis.txt", train_images=1, val_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_drawing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = itertools.count()
    paint = shapes._paint

    def interrupted(*args: Any) -> Any:
        if next(steps) == 2:
            raise KeyboardInterrupt
        return paint(*args)

    monkeypatch.setattr(shapes, "_paint", interrupted)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(out, train_images=4, val_images=1)
    assert list(tmp_path.iterdir()) == [out]
    assert not list(out.iterdir())
    monkeypatch.undo()
    draw_dataset(out, train_images=4, val_images=1)
    assert read_manifest(out) is not None


def test_coverage_is_that_of_the_polygon() -> None:
    rectangle = np.array([(8, 16), (40, 16), (40, 56), (8, 56)])  # 0.5..2.5 x 1..3.5 px
    expected = np.zeros((5, 4))
    expected[1:4, :3] = np.outer([1, 1, 0.5], [0.5, 1, 0.5])
    np.testing.assert_array_equal(coverage(rectangle, 5, 4) / SAMPLES**2, expected)
    assert polygon_area(rectangle) == 5.0
    rng = np.random.default_rng(0)
    for _ in range(50):
        triangle = rng.integers(-5 * UNIT, 45 * UNIT, (3, 2))
        within = np.clip(triangle, 0, 40 * UNIT)
        assert coverage(within, 40, 40).sum() / SAMPLES**2 == pytest.approx(
            polygon_area(within), rel=0.02, abs=1
        )
