"""A model is scored on the images and boxes that its run was scored on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qatval.core.errors import QatvalError
from qatval.data.coco import CocoFiles, write_annotations
from qatval.data.shapes import draw_dataset
from qatval.data.subset import Subset, build_subset
from qatval.data.validation import ValidationSet, validation_set


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return embedded data with a crowd, a box twice and one that hangs over the border."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root, train_images=2, val_images=8, size=64)
    path = root / "annotations" / "instances_val2017.json"
    document = json.loads(path.read_text())
    first = document["annotations"][0]
    document["annotations"] += [
        {**first, "id": 900, "iscrowd": 1},
        {**first, "id": 901},
        {**first, "id": 902, "bbox": [-3.0, 2.0, 20.0, 9.0]},
    ]
    path.write_text(json.dumps(document))
    (root / "qatval-dataset.json").unlink()
    return root


def of_a_run(root: Path, count: int | None, cache: Path) -> Subset:
    return build_subset(root, train_images=None, val_images=count, seed=0, cache_dir=cache)


def assert_same(found: ValidationSet, subset: Subset, folder: Path) -> None:
    write_annotations(found.index, folder / "ours.json")
    assert (folder / "ours.json").read_bytes() == subset.val_annotations.read_bytes()
    for ours, theirs in (
        (found.labels.offsets, subset.val.offsets),
        (found.labels.classes, subset.val.classes),
        (found.labels.boxes, subset.val.boxes),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert found.index.file_names == subset.val.file_names


@pytest.mark.parametrize("count", [None, 5, 100])
def test_they_are_what_a_run_selects(root: Path, tmp_path: Path, count: int | None) -> None:
    subset = of_a_run(root, count, tmp_path / "cache")
    found = validation_set(CocoFiles.of(root, "val"), count, subset.class_names)
    assert_same(found, subset, tmp_path)
    assert found.are_those_of(dict(subset.identity))


def test_no_training_images_are_needed(root: Path, tmp_path: Path) -> None:
    subset = of_a_run(root, 5, tmp_path / "cache")
    shutil.copytree(root, tmp_path / "val")
    (tmp_path / "val" / "annotations" / "instances_train2017.json").unlink()
    shutil.rmtree(tmp_path / "val" / "train2017")
    found = validation_set(CocoFiles.of(tmp_path / "val", "val"), 5, subset.class_names)
    assert found.are_those_of(dict(subset.identity))


def test_a_runs_own_annotations_give_the_same_boxes(root: Path, tmp_path: Path) -> None:
    subset = of_a_run(root, 5, tmp_path / "cache")
    files = CocoFiles(subset.val_annotations, subset.val.image_dir)
    assert_same(validation_set(files, None, subset.class_names), subset, tmp_path)


def test_other_images_and_other_boxes_are_told_from_a_runs(root: Path, tmp_path: Path) -> None:
    identity = dict(of_a_run(root, 5, tmp_path / "cache").identity)
    names = of_a_run(root, 5, tmp_path / "cache").class_names
    assert not validation_set(CocoFiles.of(root, "val"), 6, names).are_those_of(identity)
    shutil.copytree(root, tmp_path / "other")
    path = tmp_path / "other" / "annotations" / "instances_val2017.json"
    document = json.loads(path.read_text())
    document["annotations"].pop()
    path.write_text(json.dumps(document))
    other = validation_set(CocoFiles.of(tmp_path / "other", "val"), 5, names)
    for known in (identity, None, {}, {"annotations": [], "val": identity["val"]}):
        assert not other.are_those_of(known)


def test_a_category_above_all_others_is_no_class(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "roots")
    for split in ("train", "val"):
        path = tmp_path / "roots" / "annotations" / f"instances_{split}2017.json"
        document = json.loads(path.read_text())
        for category in document["categories"]:
            category["supercategory"] = "all"
        document["categories"].append({"id": 0, "name": "all", "supercategory": "none"})
        path.write_text(json.dumps(document))
    subset = of_a_run(tmp_path / "roots", None, tmp_path / "cache")
    assert "all" not in subset.class_names
    found = validation_set(CocoFiles.of(tmp_path / "roots", "val"), None, subset.class_names)
    assert_same(found, subset, tmp_path)


def test_files_that_are_missing_or_damaged(root: Path, tmp_path: Path) -> None:
    files = CocoFiles.of(root, "val")
    with pytest.raises(QatvalError, match="no such image folder"):
        validation_set(CocoFiles(files.annotations, tmp_path / "none"), None, ())
    with pytest.raises(QatvalError, match="cannot be read"):
        validation_set(CocoFiles(tmp_path / "none.json", files.image_dir), None, ())
    shutil.copytree(files.image_dir, tmp_path / "images")
    broken = sorted((tmp_path / "images").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(QatvalError, match="damaged"):
        validation_set(CocoFiles(files.annotations, tmp_path / "images"), None, ())
