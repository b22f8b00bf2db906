"""The strip of validation images."""

import json

import pytest

from qatval.analysis.runs import LoadedRun
from qatval.data.coco import read_annotations
from qatval.data.shapes import draw_dataset
from qatval.report.images import EXAMPLES, strip


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    draw_dataset(root, train_images=1, val_images=12, size=64)
    return root


@pytest.fixture
def run(tmp_path, coco, make_summary):
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
        return LoadedRun(root, make_summary(method, seed, changes=changes))

    return make


def test_the_same_images_beside_each_method(run):
    shown = strip([run("baseline"), run("ema")])
    assert len(shown.examples) == EXAMPLES
    for example in shown.examples:
        assert [panel.title for panel in example.panels] == ["ground truth", "baseline", "ema"]
        assert example.jpeg.startswith("data:image/jpeg;base64,")


def test_exact_boxes_are_found_and_boxes_elsewhere_are_false(run):
    exact, beside = run("baseline"), run("ema", shift=1000)
    for example in strip([exact, beside]).examples:
        truth, found, missed = example.panels
        assert {box.kind for box in truth.boxes} == {"truth"}
        assert {box.kind for box in missed.boxes} <= {"false"}
        objects = len(truth.boxes)
        assert found.caption.startswith(f"{objects} found")
        assert missed.caption.endswith(f"{objects} missed")


def test_the_seed_with_the_most_methods_is_shown(run):
    assert strip([run("baseline", 0), run("baseline", 1), run("ema", 1)]).seed == 1


def test_a_run_root_may_have_been_moved(run, tmp_path):
    moved = run(run_root="/elsewhere", predictions="/elsewhere/predictions.json")
    assert strip([moved]).examples


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
    reason = strip([run(**artifacts)])
    assert isinstance(reason, str)
    assert says in reason


def test_detections_that_are_none_are_a_reason(run):
    broken = run()
    (broken.root / "predictions.json").write_text('[{"image_id": "x"}]')
    assert "cannot be shown" in strip([broken])
