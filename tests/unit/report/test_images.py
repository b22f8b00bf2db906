"""Validation images with what the methods found in them."""

import base64
import functools
import json
import os

import cv2
import numpy as np
import pytest

from qatval.core.errors import QatvalError
from qatval.data.coco import read_annotations
from qatval.data.shapes import draw_dataset
from qatval.data.subset import build_subset
from qatval.report import images
from qatval.report.images import EXAMPLES, SCORE
from qatval.testing import build_summary, loaded


@pytest.fixture(scope="module")
def subset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    draw_dataset(folder, train_images=8, val_images=12, size=64)
    cache = folder / "cache"
    return build_subset(folder, train_images=8, val_images=12, seed=0, cache_dir=cache)


@pytest.fixture
def example_images(subset):
    return functools.partial(images.example_images, cache_dir=subset.directory.parents[1])


@pytest.fixture
def run(tmp_path, subset):
    def make(method="ema", seed=0, shift=0.0, **artifacts):
        """Make a run that found everything, `shift` px beside the truth."""
        root = tmp_path / f"{method}-{seed}"
        root.mkdir()
        index, _ = read_annotations(subset.val_annotations)
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
            "val_annotations": str(subset.val_annotations),
            "val_image_dir": str(subset.val.image_dir),
        }
        changes = {"artifacts": recorded | artifacts}
        return loaded(build_summary(method, seed, changes=changes), root)

    return make


def test_the_same_images_beside_each_method(example_images, run):
    shown = example_images([run("baseline"), run("ema")])
    assert len(shown.examples) == EXAMPLES
    for example in shown.examples:
        assert [panel.title for panel in example.panels] == ["ground truth", "baseline", "ema"]
        assert example.jpeg.startswith("data:image/jpeg;base64,")


def test_exact_boxes_are_found_and_boxes_elsewhere_are_false(example_images, run):
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


def test_no_number_of_a_box_covers_another(example_images, run):
    for example in example_images([run("baseline"), run("ema")]).examples:
        for panel in example.panels:
            assert len(panel.numbers_at) == len(panel.boxes)
            for at, (x, y) in enumerate(panel.numbers_at):
                for other, below in panel.numbers_at[:at]:
                    apart = max(abs(x - other), abs(y - below))
                    assert apart > 0.9 * example.letter


@pytest.mark.parametrize(("long_side", "kept"), [(1280, 640), (300, 300)])
def test_large_images_are_made_smaller_and_small_ones_are_left(tmp_path, long_side, kept):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((long_side // 2, long_side, 3), np.uint8))
    encoded = base64.b64decode(images._jpeg(tmp_path / "image.png").partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape[:2] == (kept // 2, kept)


def test_equal_pictures_have_equal_keys_and_others_do_not(example_images, run):
    first, again = (example_images([run("ema", seed)]).examples for seed in (0, 1))
    assert [example.key for example in first] == [example.key for example in again]
    assert len({example.key for example in first}) == EXAMPLES


def test_the_seed_with_the_most_methods_is_shown(example_images, run):
    assert example_images([run("baseline", 0), run("baseline", 1), run("ema", 1)]).seed == 1


def test_a_run_root_may_have_been_moved(example_images, run, tmp_path):
    moved = run(run_root="/elsewhere", predictions="/elsewhere/predictions.json")
    assert example_images([moved]).examples


@pytest.mark.parametrize(
    ("artifacts", "says"),
    [
        ({"predictions": None}, "No run recorded its detections"),
        ({"predictions": "gone.json"}, "No run recorded its detections"),
        ({"predictions": "."}, "Is a directory"),
        ({"predictions": "/dev/zero"}, "'/dev/zero' leads out of"),
        ({"predictions": "../ema-1/predictions.json"}, "leads out of"),
        ({"predictions": "a\0b"}, "is no path"),
        ({"predictions": "x" * 5000}, "No run recorded its detections"),
        ({"val_annotations": None}, "is not in the cache"),
        ({"val_annotations": "/nowhere"}, "is not in the cache"),
        ({"val_annotations": "/of/another/machine/" + "0" * 32 + "/a.json"}, "is not in the cache"),
    ],
    ids=range(10),
)
def test_without_images_there_is_a_reason(example_images, run, artifacts, says):
    reason = example_images([run(**artifacts)])
    assert isinstance(reason, str)
    assert says in reason


def test_annotations_and_images_are_those_of_the_cache(example_images, run, subset, tmp_path):
    """A stranger's summary cannot have pictures of its choice put into a report."""
    (tmp_path / "val_annotations.json").write_text("{}")
    elsewhere = f"/of/another/machine/{subset.directory.name}/val_annotations.json"
    moved = run(val_annotations=elsewhere, val_image_dir=str(tmp_path))
    assert len(example_images([moved]).examples) == EXAMPLES
    own = {"val_annotations": "val_annotations.json", "val_image_dir": "."}
    reason = example_images([run("baseline", **own)])
    assert "is not in the cache" in reason


def test_a_link_out_of_the_run_root_is_not_followed(example_images, run, tmp_path):
    good, bad = run("ema"), run("baseline")
    (bad.root / "predictions.json").unlink()
    (bad.root / "predictions.json").symlink_to(good.root / "predictions.json")
    shown = example_images([bad, good])
    assert [panel.title for panel in shown.examples[0].panels] == ["ground truth", "ema"]
    (left_out,) = shown.left_out
    assert bad.run_id in left_out
    assert "leads out of" in left_out


def test_a_fifo_neither_blocks_nor_costs_the_others_their_images(example_images, run):
    good, bad = run("ema"), run("baseline")
    (bad.root / "predictions.json").unlink()
    os.mkfifo(bad.root / "predictions.json")
    shown = example_images([bad, good])
    assert len(shown.examples) == EXAMPLES
    assert "no regular file" in shown.left_out[0]


def test_many_boxes_in_one_place_are_drawn_in_time_and_are_not_all(example_images, run):
    crowded = run()
    found = json.loads((crowded.root / "predictions.json").read_text())
    same = [{**found[0], "bbox": [1e308, 1, 1e308, 1], "score": SCORE} for _ in range(20_000)]
    (crowded.root / "predictions.json").write_text(json.dumps(found + same))
    most = max(len(p.boxes) for e in example_images([crowded]).examples for p in e.panels)
    assert most == images._MOST_BOXES


@pytest.mark.parametrize(
    "content",
    [
        '[{"image_id": "x"}]',
        "[" * 50_000,
        '[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1e999], "score": 1}]',
        b"[\xff",
    ],
    ids=["another type", "nested", "infinite", "not UTF-8"],
)
def test_detections_that_are_none_are_a_reason(example_images, run, content):
    broken = run()
    content = content if isinstance(content, bytes) else content.encode()
    (broken.root / "predictions.json").write_bytes(content)
    assert "holds no detections" in example_images([broken])


def test_what_is_too_large_is_not_read(example_images, run, monkeypatch):
    monkeypatch.setattr(images, "_MOST_DETECTIONS_BYTES", 1000)
    assert "expected detections, of at most 1,000" in example_images([run()])


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((100, 100, 3), np.uint8))
    monkeypatch.setattr(images, "_MOST_PIXELS", 9_999)
    with pytest.raises(QatvalError, match="100 x 100 px"):
        images._jpeg(tmp_path / "image.png")
