"""Validation images with what the methods found in them."""

import base64
import json

import cv2
import numpy as np
import pytest

from qatval.data.coco import read_annotations
from qatval.data.shapes import draw_dataset
from qatval.report.images import EXAMPLES, example_images
from qatval.testing import build_summary, loaded


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    draw_dataset(root, train_images=1, val_images=12, size=64)
    return root


@pytest.fixture
def run(tmp_path, coco):
    def make(method="ema", seed=0, shift=0.0, **artifacts):
        """Make a run that found everything, `shift` px beside the truth."""
        root = tmp_path / f"{method}-{seed}"
        root.mkdir()
        index, _ = read_annotations(coco / "annotations" / "instances_val2017.json")
        found = [
            {
                "image_id": int(index.image_ids[row]),
                "category_id": int(index.category_ids[class_]),
                "bbox": [box[0] + shift, *box[1:].tolist()],
                "score": 0.9,
            }
            for row, class_, box in zip(index.owners, index.classes, index.boxes, strict=True)
        ]
        (root / "predictions.json").write_text(json.dumps(found))
        recorded = {
            "run_root": str(root),
            "predictions": "predictions.json",
            "val_annotations": str(coco / "annotations" / "instances_val2017.json"),
            "val_image_dir": str(coco / "val2017"),
        }
        changes = {"artifacts": recorded | artifacts}
        return loaded(build_summary(method, seed, changes=changes), root)

    return make


def test_the_same_images_beside_each_method(run):
    shown = example_images([run("baseline"), run("ema")])
    assert len(shown.examples) == EXAMPLES
    for example in shown.examples:
        assert [panel.title for panel in example.panels] == ["ground truth", "baseline", "ema"]
        assert example.jpeg.startswith("data:image/jpeg;base64,")


def test_exact_boxes_are_found_and_boxes_elsewhere_are_false(run):
    exact, beside = run("baseline"), run("ema", shift=1000)
    for example in example_images([exact, beside]).examples:
        truth, found, missed = example.panels
        assert {box.kind for box in truth.boxes} == {"truth"}
        objects = len(truth.boxes)
        assert [box.kind for box in found.boxes] == ["found"] * objects
        assert found.caption == f"{objects} found, 0 false, 0 missed"
        assert [box.kind for box in missed.boxes] == ["false"] * objects + ["missed"] * objects
        assert missed.caption == f"0 found, {objects} false, {objects} missed"
        assert [(b.x, b.title) for b in missed.boxes[objects:]] == [
            (b.x, b.title) for b in truth.boxes
        ]


def test_no_number_of_a_box_covers_another(run):
    for example in example_images([run("baseline"), run("ema")]).examples:
        for panel in example.panels:
            assert len(panel.numbers_at) == len(panel.boxes)
            for at, (x, y) in enumerate(panel.numbers_at):
                for other, below in panel.numbers_at[:at]:
                    apart = max(abs(x - other), abs(y - below))
                    assert apart > 0.9 * example.letter


def test_large_images_are_made_smaller_and_small_ones_are_left(run, coco, tmp_path):
    for name, long_side, kept in (("large", 1280, 640), ("small", 300, 300)):
        folder = tmp_path / name
        folder.mkdir()
        for image in (coco / "val2017").iterdir():
            picture = np.zeros((long_side // 2, long_side, 3), np.uint8)
            cv2.imwrite(str(folder / image.name), picture)
        for example in example_images([run(name, val_image_dir=str(folder))]).examples:
            encoded = base64.b64decode(example.jpeg.partition(",")[2])
            shown = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
            assert shown.shape[:2] == (kept // 2, kept)


def test_equal_pictures_have_equal_keys_and_others_do_not(run):
    first, again = (example_images([run("ema", seed)]).examples for seed in (0, 1))
    assert [example.key for example in first] == [example.key for example in again]
    assert len({example.key for example in first}) == EXAMPLES


def test_the_seed_with_the_most_methods_is_shown(run):
    assert example_images([run("baseline", 0), run("baseline", 1), run("ema", 1)]).seed == 1


def test_a_run_root_may_have_been_moved(run, tmp_path):
    moved = run(run_root="/elsewhere", predictions="/elsewhere/predictions.json")
    assert example_images([moved]).examples


@pytest.mark.parametrize(
    ("artifacts", "says"),
    [
        ({"predictions": None}, "No run recorded its detections"),
        ({"predictions": "gone.json"}, "No run recorded its detections"),
        ({"val_annotations": "/nowhere"}, "no longer where the runs found it"),
        ({"val_image_dir": None}, "no longer where the runs found it"),
        ({"val_image_dir": "."}, "is not a readable image"),
        ({"predictions": "."}, "cannot be shown"),
    ],
)
def test_without_images_there_is_a_reason(run, artifacts, says):
    reason = example_images([run(**artifacts)])
    assert isinstance(reason, str)
    assert says in reason


def test_detections_that_are_none_are_a_reason(run):
    broken = run()
    (broken.root / "predictions.json").write_text('[{"image_id": "x"}]')
    assert "cannot be shown" in example_images([broken])
