"""`qatval dataset check`: every kind of problem at once, with its count and an example."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qatval.cli import dataset
from qatval.data.shapes import draw_dataset

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "shapes"
    draw_dataset(root, train_images=12, val_images=6)
    return root


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn, tmp_path / "data")
    (tmp_path / "data" / "qatval-dataset.json").unlink()
    return tmp_path / "data"


@pytest.fixture
def check(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Check the dataset; return the exit code and what was printed."""

    def check(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser(prog="qatval")
        dataset.add_parser(parser.add_subparsers())
        args = parser.parse_args(["dataset", "check", "--coco-root", str(root), *words])
        code: int = args.handler(args)
        return code, capsys.readouterr().out

    return check


def rewrite(root: Path, change: Change, split: str = "train") -> None:
    path = root / "annotations" / f"instances_{split}2017.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def lines(printed: str, mark: str, subject: str = "") -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(f"{mark}  {subject}")]


def test_a_sound_dataset(check: Any) -> None:
    code, printed = check()
    assert code == 0
    assert printed.endswith("Ready for a run.\n")
    assert lines(printed, "NO") == []
    assert "12, all of the size that is said" in printed
    code, printed = check("--verify")
    assert code == 0
    assert "12, decoded, all of the size that is said" in printed


def test_it_goes_on_after_the_first_problem(check: Any, root: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        images, annotations = document["images"], document["annotations"]
        images[0].update(file_name="/data/a.jpg")
        images[1].update(width=images[1]["width"] + 1)
        images[2].update(height=0)
        images.append(images[3])
        annotations[0]["bbox"].pop()
        annotations[1].update(category_id=77)
        annotations[2].update(category_id="3")
        annotations.append({**annotations[4], "image_id": 424242})
        flat = {**annotations[5], "image_id": images[5]["id"], "bbox": [1, 1, 0, 5]}
        annotations += [flat, flat]

    rewrite(root, spoil)
    rewrite(root, lambda d: d["categories"][0].update(name="else"), "val")
    broken = sorted((root / "val2017").iterdir())
    broken[0].write_text("<html>")
    broken[1].write_bytes(broken[1].read_bytes()[:-30])
    broken[2].unlink()
    code, printed = check()
    assert code == 1
    annotations = "\n".join(lines(printed, "NO", "train annotations"))
    for said in (
        "image height or width is no positive integer (1 times, e.g. '",
        "image id occurs again (1 times",
        "bbox is not four numbers (1 times, e.g. [",
        "category id that is not listed (2 times, e.g. 77)",
        "annotation for an image id that is not listed (1 times, e.g. 424242)",
    ):
        assert said in annotations
    assert any("2 boxes of no area are dropped, e.g. " in line for line in lines(printed, "--"))
    assert "1 category ids differ between the splits, e.g. 1 (" in printed
    train = "\n".join(lines(printed, "NO", "train images"))
    assert "'/data/a.jpg' is an absolute file name" in train
    assert "1 of 11 images have another size" in train
    val = "\n".join(lines(printed, "NO", "val images"))
    for said in (
        "1 of 6 images are missing",
        "1 of 6 images are no images",
        "6 images are damaged",
    ):
        assert said in val
    assert len(printed.splitlines()) < 40
    assert "of these lines are marked NO" in printed.splitlines()[-1]


def test_what_is_read_is_no_fault_beside_one(check: Any, root: Path) -> None:
    def odd(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            annotation.update(iscrowd=None, area=None, image_id=float(annotation["image_id"]))
        document["images"][0].update(width=float(document["images"][0]["width"]))
        document["annotations"][0]["bbox"].pop()

    rewrite(root, odd)
    code, printed = check()
    assert code == 1
    (line,) = lines(printed, "NO")
    assert "bbox is not four numbers (1 times" in line


def test_as_json(check: Any, root: Path) -> None:
    next((root / "train2017").iterdir()).unlink()
    code, printed = check("--json")
    document = json.loads(printed)
    assert code == 1
    assert document["sound"] is False
    assert document["coco_root"] == str(root)
    (problem,) = (f for f in document["findings"] if f["level"] == "problem")
    assert problem["subject"] == "train images"
    assert problem["count"] == 1
    assert problem["example"].endswith(".jpg")


def test_what_is_missing_does_not_hide_the_rest(check: Any, root: Path) -> None:
    shutil.rmtree(root / "val2017")
    (root / "annotations" / "instances_train2017.json").unlink()
    code, printed = check()
    assert code == 1
    assert "2 of 4 parts are missing" in printed
    assert lines(printed, "ok", "val labels")


def test_no_dataset_at_all(check: Any, root: Path) -> None:
    shutil.rmtree(root)
    code, printed = check()
    assert code == 1
    assert len(lines(printed, "NO")) == 1
    assert "no such COCO folder" in printed


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\x80\x04.", b'{"images": 3}', b"<html>"], ids=str
)
def test_what_is_no_annotation_file(check: Any, root: Path, content: bytes) -> None:
    (root / "annotations" / "instances_val2017.json").write_bytes(content)
    code, printed = check()
    assert code == 1
    assert "not a COCO instances file" in "".join(lines(printed, "NO", "val annotations"))
    assert lines(printed, "ok", "train images")


EMPTY: dict[str, tuple[Change, str]] = {
    "no images": (lambda d: d.update(images=[], annotations=[]), "no images are listed"),
    "no annotations": (lambda d: d.update(annotations=[]), "no label is left"),
    "crowds": (lambda d: [a.update(iscrowd=1) for a in d["annotations"]], "no label is left"),
    "outside": (
        lambda d: [a.update(bbox=[9000, 1, 5, 5]) for a in d["annotations"]],
        "no label is left",
    ),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("change", "said"), EMPTY.values(), ids=EMPTY)
def test_an_empty_split(check: Any, root: Path, split: str, change: Change, said: str) -> None:
    rewrite(root, change, split)
    code, printed = check()
    assert code == 1
    assert said in "".join(lines(printed, "NO", f"{split} labels"))


def test_what_somebody_should_know(check: Any, root: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        annotations = document["annotations"]
        annotations.append({**annotations[0], "id": 10**6})
        annotations[1]["bbox"][0] = -3
        annotations[2].update(iscrowd=1)
        document["categories"].append({"id": 91, "name": "unicorn"})
        document["categories"].append({"id": 92, "name": "unicorn"})

    for split in ("train", "val"):
        rewrite(root, spoil, split)
    code, printed = check()
    assert code == 0
    notes = "\n".join(lines(printed, "--"))
    for said in (
        "1 boxes said twice are dropped",
        "boxes are cut at the image border",
        "crowd regions are no training labels",
        "2 classes have no box to train on, e.g. 'unicorn'",
        "1 names stand for several categories, e.g. 'unicorn'",
    ):
        assert said in notes


def test_the_example_is_an_image_that_has_it(check: Any, root: Path) -> None:
    names: list[str] = []

    def spoil(document: dict[str, Any]) -> None:
        names.extend(image["file_name"] for image in document["images"])
        image = document["images"][7]
        document["annotations"].append(
            {**document["annotations"][0], "image_id": image["id"], "bbox": [5, 5, 0, 0]}
        )

    rewrite(root, spoil)
    code, printed = check()
    assert code == 0
    assert f"1 boxes of no area are dropped, e.g. {names[7]}" in printed


def test_an_image_listed_twice(check: Any, root: Path) -> None:
    rewrite(root, lambda d: d["images"].append({**d["images"][3], "id": 999_999}))
    code, printed = check()
    assert code == 0
    assert "1 file names are listed again" in "".join(lines(printed, "--", "train annotations"))


def test_only_what_a_profile_uses(check: Any, root: Path) -> None:
    (last := max((root / "val2017").iterdir())).unlink()
    rewrite(root, lambda d: d["images"].sort(key=lambda i: i["id"]), "val")
    assert check("--profile", "smoke")[0] == check()[0] == 1, last
    from qatval.core.errors import UsageError

    with pytest.raises(UsageError):
        check("--profile", "huge")
