"""Bad input ends in one line that names the file and says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qatval.core.errors import QatvalError, UsageError
from qatval.data.subset import build_subset

Spoil = Callable[[Path, dict[str, Any]], None]

TRAIN = "annotations/instances_train2017.json"


def rewrite(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(root: Path, document: dict[str, Any]) -> None:
        change(document)
        (root / TRAIN).write_text(json.dumps(document))

    return spoil


def replace_text(old: str, new: str) -> Spoil:
    def spoil(root: Path, document: dict[str, Any]) -> None:
        text = (root / TRAIN).read_text()
        assert old in text
        (root / TRAIN).write_text(text.replace(old, new, 1))

    return spoil


def first(document: dict[str, Any], table: str) -> dict[str, Any]:
    record: dict[str, Any] = document[table][0]
    return record


CASES: dict[str, tuple[Spoil, str]] = {
    "no root": (lambda root, _: root.rename(root.with_name("away")), "no such COCO folder"),
    "no annotation file": (lambda root, _: (root / TRAIN).unlink(), "no such annotation file"),
    "no image folder": (
        lambda root, _: (root / "val2017").rename(root / "validation"),
        "val2017: no such image folder",
    ),
    "cut short": (
        lambda root, _: (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:1000]),
        "truncated",
    ),
    "not JSON": (lambda root, _: (root / TRAIN).write_bytes(b"\x80\x04."), "malformed"),
    "not an object": (lambda root, _: (root / TRAIN).write_text("[]"), "but a list"),
    "no annotations": (rewrite(lambda d: d.pop("annotations")), "`annotations` is missing"),
    "no box": (
        rewrite(lambda d: first(d, "annotations").pop("bbox")),
        ": bbox is missing, expected four numbers",
    ),
    "three numbers": (
        rewrite(lambda d: first(d, "annotations")["bbox"].pop()),
        "expected four numbers",
    ),
    "five numbers": (
        rewrite(lambda d: first(d, "annotations")["bbox"].append(1)),
        "expected four numbers",
    ),
    "text for a number": (
        rewrite(lambda d: first(d, "annotations").update(image_id="7")),
        'image_id is "7", expected an integer; ids as text come from',
    ),
    "an id beyond 64 bits": (
        rewrite(lambda d: first(d, "images").update(id=2**70)),
        "expected an integer of at most 64 bits",
    ),
    "no height": (rewrite(lambda d: first(d, "images").update(height=0)), "height is 0, expected"),
    "unknown image": (
        rewrite(lambda d: first(d, "annotations").update(image_id=987654)),
        "names image id 987654, which",
    ),
    "unknown category": (
        rewrite(lambda d: first(d, "annotations").update(category_id=2)),
        "names category id 2, which",
    ),
    "image twice": (rewrite(lambda d: d["images"].append(d["images"][0])), "occurs twice"),
    "category twice": (
        rewrite(lambda d: d["categories"].append(d["categories"][0])),
        "category id 90 occurs twice",
    ),
    "other categories": (
        rewrite(lambda d: first(d, "categories").update(name="else")),
        "its categories are not those of",
    ),
    "no images": (rewrite(lambda d: d.update(images=[], annotations=[])), "lists no images"),
    "NUL in a name": (
        rewrite(lambda d: first(d, "images").update(file_name="a\0b")),
        r"file name 'a\x00b' has a control character",
    ),
    "what a terminal obeys in a name": (
        rewrite(lambda d: first(d, "images").update(file_name="a\x1b[2Jb")),
        r"file name 'a\x1b[2Jb' has a control character",
    ),
    "absolute name": (
        rewrite(lambda d: [i.update(file_name="/data/" + i["file_name"]) for i in d["images"]]),
        "is an absolute file name, expected one within the image folder",
    ),
    "drive letter": (
        rewrite(lambda d: [i.update(file_name="C:/" + i["file_name"]) for i in d["images"]]),
        "is an absolute file name, expected one within the image folder",
    ),
    "nested lists": (
        replace_text('"info": {}', f'"info": {"[" * 50_000}{"]" * 50_000}'),
        "something in it is nested hundreds of levels deep",
    ),
    "nested objects": (
        replace_text('"info": {}', '"info": ' + '{"a": ' * 50_000 + "1" + "}" * 50_000),
        "something in it is nested hundreds of levels deep",
    ),
    "an integer of 5,000 digits": (
        replace_text('"iscrowd": 0', f'"iscrowd": {"9" * 5000}'),
        "it has an integer of thousands of digits",
    ),
    "a stray byte": (
        lambda root, _: (root / TRAIN).write_bytes(
            (root / TRAIN).read_bytes().replace(b'"file_name": "', b'"file_name": "\xff', 1)
        ),
        " is not); save it as UTF-8",
    ),
    "half a character": (
        replace_text('"file_name": "', '"file_name": "\\ud800'),
        "images[0] (id",
    ),
    "name outside the folder": (
        rewrite(lambda d: [i.update(file_name="../" + i["file_name"]) for i in d["images"]]),
        "leads out of the image folder",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), CASES.values(), ids=CASES)
def test_bad_dataset(
    write_coco: Any, documents: Any, cache_dir: Path, spoil: Spoil, message: str
) -> None:
    root = write_coco()
    spoil(root, documents["train"])
    with pytest.raises(QatvalError) as caught:
        build_subset(root, train_images=10, val_images=5, seed=0, cache_dir=cache_dir)
    text = str(caught.value)
    assert message in text
    assert str(root) in text
    assert "\n" not in text
    assert caught.value.exit_code == 1
    assert not list(cache_dir.glob("subsets/.*"))


def test_missing_images_are_counted(write_coco: Any, cache_dir: Path) -> None:
    root = write_coco()
    for path in sorted((root / "train2017").iterdir())[:3]:
        path.unlink()
    with pytest.raises(QatvalError, match="3 of 40 images are missing"):
        build_subset(root, train_images=None, val_images=5, seed=0, cache_dir=cache_dir)


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ('"bbox": [1e999, ', '"bbox": ['),  # infinite: dropped
        ('"\\ud800": 1, "bbox": [', '"bbox": ['),
        ('"supercategory": "\\ud800"', '"supercategory": ""'),
    ],
    ids=["infinite box", "half a character in a key", "half a character in a supercategory"],
)
def test_what_is_not_needed_or_dropped_may_be_odd(
    write_coco: Any, cache_dir: Path, change: str, read: str
) -> None:
    root = write_coco()
    text = (root / TRAIN).read_text()
    start = text.index(read)
    end = text.index(",", start) + 1 if "1e999" in change else start + len(read)
    (root / TRAIN).write_text(text[:start] + change + text[end:])
    build_subset(root, train_images=None, val_images=5, seed=0, cache_dir=cache_dir)


@pytest.mark.parametrize("name", [TRAIN, "list.txt"])
def test_what_is_no_file_is_not_waited_for(write_coco: Any, cache_dir: Path, name: str) -> None:
    root = write_coco()
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    with pytest.raises(QatvalError, match=r"no such annotation file|is no regular file") as caught:
        build_subset(
            root,
            train_images=10,
            val_images=5,
            seed=0,
            cache_dir=cache_dir,
            image_list=root / "list.txt" if name == "list.txt" else None,
        )
    assert str(root / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "length"), [(TRAIN, 5 * 2**30), ("list.txt", 2**30)], ids=["annotations", "list"]
)
def test_what_is_far_too_large_is_not_read(
    write_coco: Any, cache_dir: Path, name: str, length: int
) -> None:
    root = write_coco()
    with (root / name).open("ab") as file:
        file.truncate(length)  # takes no room
    with pytest.raises(QatvalError, match=f"has {length:,} bytes; expected a .*, of at most"):
        build_subset(
            root,
            train_images=10,
            val_images=5,
            seed=0,
            cache_dir=cache_dir,
            image_list=root / "list.txt" if name == "list.txt" else None,
        )


@pytest.mark.parametrize("wrong", [{"train_images": 0}, {"val_images": -1}, {"seed": -1}])
def test_wrong_usage(write_coco: Any, cache_dir: Path, wrong: dict[str, int]) -> None:
    settings: dict[str, Any] = {"train_images": 1, "val_images": 1, "seed": 0} | wrong
    with pytest.raises(UsageError, match="must be at least"):
        build_subset(write_coco(), cache_dir=cache_dir, **settings)


def test_a_cache_that_cannot_be_written(write_coco: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(QatvalError, match="the cache cannot be written"):
        build_subset(write_coco(), train_images=1, val_images=1, seed=0, cache_dir=blocked / "in")
