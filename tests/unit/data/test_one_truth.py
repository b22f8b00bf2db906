"""Whatever is odd about annotations, labels and pycocotools see the same boxes, and it is told."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from qatval.core.errors import QatvalError
from qatval.data import labels as labels_module
from qatval.data.coco_protocol import TOLERANCE, evaluate_coco
from qatval.data.labels import LabelCounts, label_warnings
from qatval.data.subset import Split, Subset, build_subset

WIDTH, HEIGHT = 80, 60
GOOD = [10.0, 10.0, 20.0, 20.0]


def annotation(bbox: list[float], image_id: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image_id, "category_id": 3, "bbox": bbox, "iscrowd": 0} | more


def document(*annotations: dict[str, Any], images: int = 2) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT}
            for i in range(1, images + 1)
        ],
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    }


def built(root: Path, val: dict[str, Any], train: dict[str, Any] | None = None) -> Subset:
    (root / "annotations").mkdir(parents=True)
    for split, content in (("train", train or document(annotation(GOOD))), ("val", val)):
        (root / f"{split}2017").mkdir()
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
        for image in content["images"]:
            file = root / f"{split}2017" / image["file_name"].replace("\\", "/")
            Image.new("RGB", (image["width"], image["height"])).save(file)
    return build_subset(
        root, train_images=None, val_images=None, seed=0, cache_dir=root.with_name("cache")
    )


Boxes = list[tuple[float, ...]]


def learned(split: Split, category_ids: tuple[int, ...]) -> Boxes:
    """Image, category and box in px of each label."""
    found = []
    for row, image_id in enumerate(split.image_ids.tolist()):
        own = slice(split.offsets[row], split.offsets[row + 1])
        height, width = split.sizes[row].tolist()
        for label, (x, y, w, h) in zip(
            split.classes[own], split.boxes[own].astype(float).tolist(), strict=True
        ):
            sides = (x - w / 2) * width, (y - h / 2) * height, w * width, h * height
            found.append((image_id, category_ids[label], *sides))
    return found


def scored(path: Path) -> Boxes:
    """The same of what pycocotools does not ignore."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    return [
        (a["image_id"], a["category_id"], *a["bbox"])
        for a in coco.dataset["annotations"]
        if not a["iscrowd"]
    ]


def assert_same_boxes(subset: Subset) -> None:
    """Labels are float32 shares of the image: what is left of a pixel then is a 10,000th."""
    boxes, labels = scored(subset.val_annotations), learned(subset.val, subset.category_ids)
    assert len(boxes) == len(labels) == subset.provenance["counts"]["val"]["boxes"]
    np.testing.assert_allclose(boxes, labels, atol=1e-4)


def assert_one_truth(subset: Subset) -> None:
    """Both see the same boxes, as many, and detections that hit them all are perfect in both."""
    assert_same_boxes(subset)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(subset.val_annotations))
    hits: list[Any] = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1}
        for a in coco.dataset["annotations"]
        if not a["iscrowd"]
    ]
    found = evaluate_coco(subset.val_annotations, hits)
    assert found.matched_map == pytest.approx(1.0, abs=TOLERANCE)
    assert found.map == pytest.approx(1.0, abs=TOLERANCE)


ODD: dict[str, tuple[list[dict[str, Any]], dict[str, int]]] = {
    "negative height": ([annotation([3, 4, 7, -2])], {"degenerate": 1}),
    "both sides negative": ([annotation([30, 40, -7, -2])], {"degenerate": 1}),
    "a point": ([annotation([3, 4, 0, 0])], {"degenerate": 1}),
    "thinner than can be written": ([annotation([3, 4, 1e-9, 5])], {"degenerate": 1}),
    "wider than floats have digits": ([annotation([3, 4, 10**300, 5])], {"clipped": 1}),
    "left of the image": ([annotation([-20, 4, 10, 10])], {"outside": 1}),
    "below it": ([annotation([4, HEIGHT, 10, 10])], {"outside": 1}),
    "a hair of it inside": ([annotation([WIDTH - 1e-6, 4, 10, 10])], {"outside": 1}),
    "over two borders": ([annotation([-5, -5, 200, 20])], {"clipped": 1, "overhanging": 1}),
    "over by half a pixel": ([annotation([70, 4, 10.5, 9])], {"clipped": 1, "overhanging": 0}),
    "tripled": ([annotation(GOOD), annotation(GOOD)], {"duplicate": 2}),
    "doubled with noise": ([annotation([10 + 1e-9, 10, 20, 20])], {"duplicate": 1}),
    "the same once cut": (
        [annotation([-5, 4, 10, 9]), annotation([-9, 4, 14, 9])],
        {"duplicate": 1, "clipped": 1},
    ),
    "the same in another class": ([annotation(GOOD, category_id=7)], {"duplicate": 0}),
    "crowd on an object": ([annotation(GOOD, iscrowd=1)], {"crowd": 1, "duplicate": 0}),
    "crowds of no area, doubled": ([annotation([1, 1, 0, 0], iscrowd=1)] * 2, {"crowd": 2}),
    "negative area": ([annotation([1, 1, 9, 9], area=-4)], {"boxes": 2}),
    "area of another scale": ([annotation([1, 1, 9, 9], area=1e12)], {"boxes": 2}),
}


@pytest.mark.parametrize(("odd", "expected"), ODD.values(), ids=ODD)
def test_both_protocols_see_one_truth(
    tmp_path: Path, odd: list[dict[str, Any]], expected: dict[str, int]
) -> None:
    val = document(annotation(GOOD), *odd)
    subset = built(tmp_path / "coco", val)
    assert_one_truth(subset)
    counts = subset.provenance["counts"]["val"]
    assert {name: counts[name] for name in expected} == expected


side = st.floats(-100, 160) | st.sampled_from([0.0, 1e-9, 60.0, 80.0, 80.0000001, -5.0, 1e300])
odd_annotations = st.lists(
    st.fixed_dictionaries(
        {
            "image_id": st.integers(1, 4),
            "category_id": st.sampled_from([3, 7]),
            "bbox": st.lists(side, min_size=4, max_size=4)
            | st.sampled_from([GOOD, [0, 0, 80, 60], [70, 50, 30, 30], [5, 5, -1, 3]]),
        },
        optional={
            "iscrowd": st.sampled_from([0, 1, True, False, None, 0.0]),
            "area": st.floats(-1, 1e12) | st.none(),
        },
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(odd_annotations, st.lists(st.integers(0, 11), max_size=4), st.booleans())
def test_random_oddities(odd: list[dict[str, Any]], doubled: list[int], one_file: bool) -> None:
    odd += [copy.deepcopy(odd[place]) for place in doubled if place < len(odd)]
    # So many that the odd ones never make the file look as if boxes were fractions.
    good = [annotation([place, 2, 30, 30]) for place in range(13)]
    val = document(*good, *odd, images=4)
    if one_file:
        val["images"][3]["file_name"] = "./1.jpg"
    with tempfile.TemporaryDirectory() as folder:
        subset = built(Path(folder) / "coco", val)
        assert_same_boxes(subset)
        counts = subset.provenance["counts"]["val"]
        dropped = (counts[name] for name in ("crowd", "degenerate", "outside", "duplicate"))
        assert counts["boxes"] + sum(dropped) == counts["annotations"] == len(odd) + 13


@pytest.mark.parametrize("other", ["1.jpg", "./1.jpg", ".\\1.jpg", ".//1.jpg"])
def test_one_file_under_several_ids_is_one_image(tmp_path: Path, other: str) -> None:
    val = document(annotation(GOOD), annotation(GOOD, 2), annotation([1, 2, 3, 4], 2))
    val["images"][1]["file_name"] = other
    subset = built(tmp_path / "coco", val)
    assert subset.val.image_ids.tolist() == [1]
    assert len(subset.val.boxes) == 2
    counts = subset.provenance["counts"]["val"]
    assert (counts["merged"], counts["duplicate"], counts["images"]) == (1, 1, 1)
    assert_one_truth(subset)


def test_a_list_may_name_either_id(tmp_path: Path) -> None:
    val = document(annotation(GOOD), annotation([1, 2, 3, 4], 2), annotation(GOOD, 3), images=3)
    val["images"][1]["file_name"] = "1.jpg"
    root = tmp_path / "coco"
    built(root, val, document(annotation(GOOD, 1), annotation(GOOD, 2)))
    (tmp_path / "list.txt").write_text("2\n3\n")
    subset = build_subset(
        root, train_images=None, val_images=None, seed=0, image_list=tmp_path / "list.txt",
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    assert subset.val.image_ids.tolist() == [1, 3]


def test_one_file_of_two_sizes_is_refused(tmp_path: Path) -> None:
    val = document(annotation(GOOD))
    val["images"][1].update(file_name="1.jpg", width=90)
    with pytest.raises(QatvalError, match=r"ids 1 and 2 are one file, 1\.jpg, but of 80 x 60"):
        built(tmp_path / "coco", val)


Change = Callable[[dict[str, Any]], object]
NOTHING: dict[str, tuple[str, Change, str]] = {
    "val of crowds": (
        "val",
        lambda d: [a.update(iscrowd=1) for a in d["annotations"]],
        r"to score against: of the 2 annotations .* \(2 crowd regions\); set iscrowd to 0",
    ),
    "train of flat boxes": (
        "train",
        lambda d: [a.update(bbox=[1, 1, 0, 4]) for a in d["annotations"]],
        r"to learn from: of the 2 annotations .* \(2 of no area\); correct the boxes",
    ),
    "val in another unit": (
        "val",
        lambda d: [a.update(bbox=[1000, 900, 30, 30]) for a in d["annotations"]],
        r"\(2 outside the image\)",
    ),
    "val without annotations": (
        "val",
        lambda d: d.update(annotations=[]),
        "its 2 selected images have no annotation; export the annotations",
    ),
}


@pytest.mark.parametrize(("split", "change", "message"), NOTHING.values(), ids=NOTHING)
def test_nothing_to_learn_or_to_score(
    tmp_path: Path, split: str, change: Change, message: str
) -> None:
    documents = {s: document(annotation(GOOD), annotation([1, 2, 3, 4])) for s in ("train", "val")}
    change(documents[split])
    with pytest.raises(QatvalError, match=message) as caught:
        built(tmp_path / "coco", documents["val"], documents["train"])
    assert f"instances_{split}2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def fractions(d: dict[str, Any], *, of: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    for a in d["annotations"]:
        a["bbox"] = [side / of[k % 2] for k, side in enumerate(a["bbox"])]


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_as_fractions_are_refused(tmp_path: Path, split: str) -> None:
    at_the_corner = annotation([40, 30, 41, 31])  # ends at 1.01 and 1.02
    documents = {s: document(annotation(GOOD), annotation(GOOD, 2)) for s in ("train", "val")}
    documents[split]["annotations"].append(at_the_corner)
    fractions(documents[split])
    with pytest.raises(QatvalError, match="2 of 3 boxes end within the first pixel, as if"):
        built(tmp_path / "coco", documents["val"], documents["train"])


def test_small_boxes_in_pixels_are_not(tmp_path: Path) -> None:
    val = document(annotation([0, 0, 1, 1]), annotation([0, 0, 1.5, 1]), annotation([3, 3, 1, 1]))
    assert_one_truth(built(tmp_path / "coco", val))


def counted(**counts: int) -> dict[str, Any]:
    none = dict.fromkeys(LabelCounts.__dataclass_fields__, 0)
    return {"counts": {"val": none | {"annotations": 1000} | counts}}


def test_few_losses_are_no_worry_and_many_are() -> None:
    assert label_warnings(counted(degenerate=5, duplicate=5, clipped=900, crowd=12)) == ()
    (warning,) = label_warnings(counted(degenerate=5, duplicate=6))
    assert warning.startswith("1.1% of 1000 val annotations were dropped or cut, more than 1%")
    assert "5 of no area, 6 repeated" in warning
    (warning,) = label_warnings(counted(overhanging=20, clipped=20))
    assert "20 cut at the border" in warning
    (warning,) = label_warnings(counted(crowd=101))
    assert "10.1% of 1000 val annotations are crowd regions" in warning
    assert np.isclose(labels_module.WORRYING_SHARE, 0.01)
