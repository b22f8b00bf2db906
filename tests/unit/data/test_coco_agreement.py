"""What qatval reads from a COCO file is what pycocotools reads from it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qatval.data.coco import find_positions, read_annotations
from qatval.data.subset import Split, build_subset


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def reference_labels(coco: COCO, image_id: int) -> tuple[list[tuple[int, list[float]]], dict]:
    """Ultralytics' COCO converter in plain Python, with boxes cut at the border."""
    image = coco.loadImgs(image_id)[0]
    width, height = image["width"], image["height"]
    classes = sorted(coco.getCatIds())
    counts = dict.fromkeys(("crowd", "degenerate", "outside", "duplicate", "clipped"), 0)
    seen, labels = [], []
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
        x, y, w, h = annotation["bbox"]
        key = (annotation["category_id"], x, y, w, h)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + w, width), min(y + h, height)
        if annotation["iscrowd"]:
            counts["crowd"] += 1
        elif w <= 0 or h <= 0:
            counts["degenerate"] += 1
        elif right <= left or bottom <= top:
            counts["outside"] += 1
        elif key in seen:
            counts["duplicate"] += 1
        else:
            seen.append(key)
            counts["clipped"] += (left, top, right, bottom) != (x, y, x + w, y + h)
            box = [
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            ]
            labels.append((classes.index(annotation["category_id"]), box))
    return labels, counts


def test_index_holds_what_pycocotools_reads(write_coco: Any) -> None:
    path = write_coco() / "annotations" / "instances_train2017.json"
    index, _ = read_annotations(path)
    coco = load(path)
    assert index.image_ids.tolist() == sorted(coco.getImgIds())
    assert index.category_ids.tolist() == sorted(coco.getCatIds())
    assert [c["name"] for c in coco.loadCats(index.category_ids)] == list(index.category_names)
    images = coco.loadImgs(index.image_ids)
    assert [i["file_name"] for i in images] == list(index.file_names)
    assert [[i["height"], i["width"]] for i in images] == index.sizes.tolist()
    for row, image_id in enumerate(index.image_ids.tolist()):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        chosen, _ = index.annotations_of(np.array([row]))
        assert [a["bbox"] for a in annotations] == index.boxes[chosen].tolist()
        assert [a["area"] for a in annotations] == index.areas[chosen].tolist()
        assert [a["iscrowd"] for a in annotations] == index.crowds[chosen].tolist()
        assert [a["category_id"] for a in annotations] == index.category_ids[
            index.classes[chosen]
        ].tolist()


@pytest.mark.parametrize(("train_images", "val_images"), [(None, None), (13, 7)])
def test_labels_and_counts(
    write_coco: Any, cache_dir: Path, train_images: int | None, val_images: int | None
) -> None:
    root = write_coco()
    subset = build_subset(
        root, train_images=train_images, val_images=val_images, seed=3, cache_dir=cache_dir
    )
    assert subset.category_ids == (1, 3, 18, 44, 90)
    for split in (subset.train, subset.val):
        coco = load(root / "annotations" / f"instances_{split.name}2017.json")
        assert_labels(split, coco, subset.provenance["counts"][split.name])


def assert_labels(split: Split, coco: COCO, counted: dict[str, int]) -> None:
    expected_counts: dict[str, int] = {}
    for position, image_id in enumerate(split.image_ids.tolist()):
        labels, counts = reference_labels(coco, image_id)
        expected_counts = {k: expected_counts.get(k, 0) + v for k, v in counts.items()}
        own = slice(split.offsets[position], split.offsets[position + 1])
        assert split.classes[own].tolist() == [class_index for class_index, _ in labels]
        np.testing.assert_allclose(
            split.boxes[own], np.reshape([box for _, box in labels], (-1, 4)), rtol=1e-6
        )
    assert expected_counts.items() <= counted.items()
    assert counted["boxes"] == len(split.boxes)
    assert counted["empty_images"] == int((np.diff(split.offsets) == 0).sum())
    assert all(expected_counts.values()), "the document must contain every oddity"


def as_it_counts(coco: COCO) -> COCO:
    """What of a document is to be scored, in plain Python: crowds, and each box once, cut."""
    kept: list[dict[str, Any]] = []
    for annotation in coco.dataset["annotations"]:
        image = coco.imgs[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + w, image["width"]), min(y + h, image["height"])
        if w > 0 and h > 0 and right > left and bottom > top:
            cut = {**annotation, "bbox": [left, top, right - left, bottom - top]}
            what = ("image_id", "category_id", "bbox", "iscrowd")
            if not any(all(cut[k] == k2[k] for k in what) for k2 in kept):
                kept.append(cut)
    cleaned = COCO()
    cleaned.dataset = {**coco.dataset, "annotations": kept}
    with contextlib.redirect_stdout(io.StringIO()):
        cleaned.createIndex()
    return cleaned


def test_subset_annotations_evaluate_as_the_original(write_coco: Any, cache_dir: Path) -> None:
    root = write_coco()
    subset = build_subset(root, train_images=5, val_images=9, seed=0, cache_dir=cache_dir)
    rng = np.random.default_rng(0)
    original = as_it_counts(load(root / "annotations" / "instances_val2017.json"))
    results = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": (np.array(annotation["bbox"]) + rng.normal(0, 0.7, 4)).tolist(),
            "score": float(rng.random()),
        }
        for annotation in original.loadAnns(original.getAnnIds(imgIds=subset.val.image_ids))
    ]
    stats = []
    for truth in (original, load(subset.val_annotations)):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluation.params.imgIds = subset.val.image_ids.tolist()
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats.append(evaluation.stats)
    assert 0.05 < stats[0][0] < 0.95
    np.testing.assert_allclose(stats[0], stats[1], atol=1e-9)


def test_an_absent_area_is_the_boxs(write_coco: Any, documents: Any) -> None:
    for annotation in documents["train"]["annotations"]:
        del annotation["area"], annotation["segmentation"], annotation["iscrowd"]
    path = write_coco(train=documents["train"]) / "annotations" / "instances_train2017.json"
    index, _ = read_annotations(path)
    np.testing.assert_array_equal(index.areas, index.boxes[:, 2] * index.boxes[:, 3])
    assert not index.crowds.any()


some_ids = st.lists(st.integers(-5, 40) | st.integers(-(2**63), 2**63 - 1), max_size=30)


@given(some_ids, some_ids)
def test_ids_are_found_whatever_their_size(ids: list[int], wanted: list[int]) -> None:
    known = sorted(set(ids))
    for table in (known, [i for i in known if 0 <= i <= 40]):
        found = find_positions(np.array(table, np.int64), np.array(wanted + ids, np.int64))
        expected = [table.index(i) if i in table else -1 for i in wanted + ids]
        assert found.tolist() == expected
