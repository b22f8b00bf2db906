"""Annotation files as tools write them: what pycocotools reads is read, the rest is named."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qatval.core.errors import QatvalError
from qatval.data.coco import AnnotationIndex, read_annotations
from qatval.data.selection import read_list, take_listed
from qatval.data.subset import Subset, build_subset

Document = dict[str, Any]


def plain() -> Document:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 80, "height": 60}],
        "annotations": [
            {"id": 9, "image_id": 1, "category_id": 0, "bbox": [1, 2, 30, 20], "iscrowd": 0},
            {"id": 10, "image_id": 1, "category_id": 1, "bbox": [5, 5, 9.5, 9], "area": 40.0},
        ],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }


def read(path: Path, content: Document | bytes | str) -> AnnotationIndex:
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_annotations(path)[0]


def same(one: AnnotationIndex, other: AnnotationIndex) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def every(table: str, **values: Any) -> Callable[[Document], Any]:
    return lambda d: [record.update(values) for record in d[table]]


READ: dict[str, Callable[[Document], Any]] = {
    "iscrowd false": every("annotations", iscrowd=False),
    "iscrowd 0.0": every("annotations", iscrowd=0.0),
    "iscrowd null": every("annotations", iscrowd=None),
    "iscrowd NaN": every("annotations", iscrowd=float("nan")),
    "iscrowd absent": lambda d: [a.pop("iscrowd", None) for a in d["annotations"]],
    "area null": lambda d: d["annotations"][0].update(area=None),
    "area NaN": lambda d: d["annotations"][0].update(area=float("nan")),
    "ids as floats": lambda d: [a.update(image_id=1.0, id=None) for a in d["annotations"]],
    "sides as floats": every("images", width=80.0, height=60.0),
    "no id of annotations": lambda d: [a.pop("id") for a in d["annotations"]],
    "ids of annotations as text": lambda d: [a.update(id="x") for a in d["annotations"]],
    "no supercategory": every("categories", supercategory=None),
    "supercategory of another kind": every("categories", supercategory=["a"]),
    "polygons": every("annotations", segmentation=[[1.0, 1.0, 2.0, 2.0, 1.0, 2.0]]),
    "uncompressed RLE": every("annotations", segmentation={"counts": [3, 4], "size": [1, 7]}),
    "compressed RLE": every("annotations", segmentation={"counts": "QS0\\x", "size": [60, 80]}),
    "segmentation null": every("annotations", segmentation=None, iscrowd=False),
    "more than COCO has": every("annotations", attributes={"occluded": "x"}, keypoints=[]),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_read_as_the_plain_file(tmp_path: Path, change: Callable[[Document], Any]) -> None:
    odd = plain()
    change(odd)
    same(read(tmp_path / "odd.json", odd), read(tmp_path / "plain.json", plain()))


@pytest.mark.parametrize("flag", [True, 1.0, 1])
def test_crowds_however_written(tmp_path: Path, flag: object) -> None:
    odd = plain()
    odd["annotations"][1]["iscrowd"] = flag
    assert read(tmp_path / "odd.json", odd).crowds.tolist() == [False, True]


def test_a_box_that_is_no_number_is_no_box(tmp_path: Path) -> None:
    odd = plain()
    odd["annotations"][1]["bbox"] = [float("nan")] * 4
    assert np.isnan(read(tmp_path / "odd.json", odd).boxes[1]).all()


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("odd", [False, True])
def test_bom_and_line_ends(tmp_path: Path, indent: int | None, odd: bool) -> None:
    document = plain()
    if odd:
        document["annotations"][0]["iscrowd"] = False
    text = json.dumps(document, indent=indent).replace("\n", "\r\n") + "\r\n"
    found = read(tmp_path / "bom.json", codecs.BOM_UTF8 + text.encode())
    same(found, read(tmp_path / "plain.json", plain()))


REFUSED: dict[str, tuple[Callable[[Document], Any], str]] = {
    "image id": (
        every("images", id="1"),
        r'images\[0\] \(id "1"\): id is "1", expected',
    ),
    "category_id": (
        lambda d: d["annotations"][1].update(category_id="1"),
        r"annotations\[1\] \(id 10\): category_id is .* PyLabel, COCO Camera Traps.*number the rec",
    ),
    "category id": (every("categories", id="0"), r"categories\[0\].*as text come from"),
    "category_id null": (
        lambda d: d["annotations"][0].update(category_id=None),
        r"annotations\[0\] \(id 9\): category_id is null",
    ),
    "image_id absent": (
        lambda d: d["annotations"][0].pop("image_id"),
        r"annotations\[0\] \(id 9\): image_id is missing",
    ),
    "half an id": (every("annotations", image_id=1.5), "image_id is 1.5, expected an integer"),
    "id true": (every("annotations", image_id=True), "image_id is true, expected an integer"),
    "height text": (every("images", height="60"), r'images\[0\] .*height is "60", expected a numb'),
    "width null": (every("images", width=None), r"images\[0\] \(id 1\): width is null"),
    "no file name": (every("images", file_name=None), "file_name is null, expected text"),
    "iscrowd text": (every("annotations", iscrowd="0"), 'iscrowd is "0", expected 0, 1, true'),
    "area text": (every("annotations", area="40"), 'area is "40", expected a number'),
    "box of text": (
        lambda d: d["annotations"][1].update(bbox=[1, "2", 3, 4]),
        r'annotations\[1\] \(id 10\): bbox\[1\] is "2", expected a number',
    ),
    "empty box": (lambda d: d["annotations"][1].update(bbox=[]), r"bbox is \[\], expected four"),
    "a number for a record": (
        lambda d: d["annotations"].append(3),
        r"annotations\[2\] is 3, expected an object",
    ),
    "annotations null": (lambda d: d.update(annotations=None), "`annotations` is null"),
    "no categories": (lambda d: d.pop("categories"), "`categories` is missing"),
    "unlisted image": (
        lambda d: d["annotations"][1].update(image_id=5),
        r"annotations\[1\] names image id 5, which the file does not list \(1 of 2",
    ),
    "drive": (every("images", file_name="C:\\data\\a.jpg"), "absolute path of Windows"),
    "share": (every("images", file_name="\\\\host\\a.jpg"), "absolute path of Windows"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_naming_record_and_field(
    tmp_path: Path, change: Callable[[Document], Any], message: str
) -> None:
    odd = plain()
    change(odd)
    with pytest.raises(QatvalError, match=message) as caught:
        read(tmp_path / "odd.json", odd)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "odd.json"))
    assert "\n" not in text
    assert "download" not in text


BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b" \n", "but empty"),
    "UTF-16": (json.dumps(plain()).encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    "Latin-1": (
        json.dumps(plain() | {"info": "é"}, ensure_ascii=False).encode("latin-1")
        .replace(b'"a.jpg"', b'"\xe9.jpg"'),
        r"in UTF-8 \(byte \d+ is not\); save it as UTF-8",
    ),
    "gzip": (gzip.compress(b"{}"), "a compressed one; unpack it"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "a page": (b"<!DOCTYPE html><html>", "a web page or XML; download"),
    "cut short": (json.dumps(plain()).encode()[:-40], "truncated one; unpack, download or export"),
    "cut in a text": (json.dumps(plain()).encode()[:30], "truncated one"),
    "a comma too many": (json.dumps(plain()).replace("]}", ",]}").encode(), "malformed.*correct"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BYTES.values(), ids=BYTES)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(QatvalError, match=message):
        read(tmp_path / "odd.json", content)


def built(root: Path, change: Callable[[Document], Any]) -> Subset:
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        document = plain()
        change(document)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
        for image in document["images"]:
            file = root / f"{split}2017" / image["file_name"].replace("\\", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (image["width"], image["height"])).save(file)
    return build_subset(
        root, train_images=None, val_images=None, seed=0, cache_dir=root.with_name("cache")
    )


@pytest.mark.parametrize("name", ["sub\\a.jpg", "sub/deep\\a.jpg", ".\\a.jpg"])
def test_backslashes_are_folders(tmp_path: Path, name: str) -> None:
    subset = built(tmp_path / "coco", every("images", file_name=name))
    assert subset.val.file_names == (name.replace("\\", "/"),)


def root_category(d: Document) -> None:
    d["categories"] = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "a", "supercategory": "things"},
        {"id": 2, "name": "b", "supercategory": "things"},
    ]
    for a in d["annotations"]:
        a["category_id"] += 1


def test_roboflows_root_is_no_class(tmp_path: Path) -> None:
    subset = built(tmp_path / "coco", root_category)
    assert subset.class_names == ("a", "b")
    assert subset.category_ids == (1, 2)
    assert subset.val.classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["annotations"][0].update(category_id=0),
        lambda d: [c.update(supercategory="none") for c in d["categories"]],
        lambda d: d["categories"][0].update(id=5),
    ],
)
def test_other_categories_from_0_stay(tmp_path: Path, change: Callable[[Document], Any]) -> None:
    def both(d: Document) -> None:
        root_category(d)
        change(d)

    assert len(built(tmp_path / "coco", both).class_names) == 3


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf1\r\n", b"\xef\xbb\xbfimages\\a.jpg\r\n", b"D:\\x\\a.jpg", b"a.jpg\r"],
)
def test_lists_as_windows_writes_them(tmp_path: Path, content: bytes) -> None:
    index = read(tmp_path / "plain.json", plain())
    (tmp_path / "list.txt").write_bytes(content)
    assert take_listed(read_list(tmp_path / "list.txt"), {"train": index})[
        "train"
    ].rows.tolist() == [0]


def test_a_list_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("1\r\n".encode("utf-16"))
    with pytest.raises(QatvalError, match=r"not UTF-8.*save it as UTF-8"):
        take_listed(
            read_list(tmp_path / "list.txt"), {"train": read(tmp_path / "plain.json", plain())}
        )
