"""A subset is built once, found afterwards, and never trusted when something has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qatval.data import cache as cache_module
from qatval.data.cache import Cache, DamagedError, default_cache_dir
from qatval.data.folder import write_dataset_folder
from qatval.data.subset import Subset, build_subset, open_subset

Build = Callable[..., Subset]


@pytest.fixture
def build(cache_dir: Path) -> Build:
    def build(root: Path, **options: Any) -> Subset:
        settings: dict[str, Any] = {"train_images": 10, "val_images": 5, "seed": 0}
        return build_subset(root, cache_dir=cache_dir, **settings | options)

    return build


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The annotation files that were hashed or decoded, in order."""
    names: list[str] = []
    for name in ("read_annotations", "sha256_of"):
        original = getattr(cache_module, name)

        def recording(path: Path, original: Any = original, name: str = name) -> Any:
            if path.name.endswith(".json"):
                names.append(f"{name} {path.name}")
            return original(path)

        monkeypatch.setattr(cache_module, name, recording)
    return names


BOTH_DECODED = [f"read_annotations instances_{split}2017.json" for split in ("train", "val")]


def assert_same(one: Subset, other: Subset) -> None:
    assert one.identity == other.identity
    assert one.directory == other.directory
    for a, b in ((one.train, other.train), (one.val, other.val)):
        assert a.file_names == b.file_names
        for name in ("image_ids", "sizes", "offsets", "classes", "boxes"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert one.val_annotations.read_bytes() == other.val_annotations.read_bytes()


def test_a_second_request_reads_no_annotation_file(
    write_coco: Any, build: Build, reads: list[str]
) -> None:
    root = write_coco()
    first = build(root)
    assert reads == BOTH_DECODED
    assert_same(first, build(root))
    assert_same(first, open_subset(first.directory))
    assert reads == BOTH_DECODED


def test_another_seed_reuses_the_index(write_coco: Any, build: Build, reads: list[str]) -> None:
    root = write_coco()
    one, other = build(root), build(root, seed=1)
    assert reads == BOTH_DECODED
    assert one.directory != other.directory
    assert one.train.file_names != other.train.file_names
    assert one.val.file_names == other.val.file_names
    differing = {key for key in one.identity if one.identity[key] != other.identity[key]}
    assert differing == {"train"}
    assert {k for k, v in one.identity["train"].items() if v != other.identity["train"][k]} == {
        "seed",
        "image_ids_sha256",
    }


def test_all_images_are_one_entry_whatever_the_seed(write_coco: Any, build: Build) -> None:
    root = write_coco()
    assert_same(
        build(root, train_images=None, val_images=None),
        build(root, train_images=None, val_images=None, seed=7),
    )


def test_asking_for_more_than_there_is_gives_all(write_coco: Any, build: Build) -> None:
    root = write_coco()
    subset = build(root, train_images=10_000, val_images=10_000)
    everything = build(root, train_images=None, val_images=None)
    assert subset.identity == everything.identity
    assert subset.provenance["asked"]["train_images"] == 10_000
    assert subset.provenance["counts"]["train"]["images"] == len(subset.train) == 40


def test_the_same_data_elsewhere_are_the_same_subset(
    write_coco: Any, build: Build, tmp_path: Path
) -> None:
    first = build(write_coco())
    moved = build(write_coco(root=tmp_path / "other"))
    assert moved.directory == first.directory
    assert moved.identity == first.identity
    assert moved.train.image_dir == tmp_path / "other" / "train2017"
    assert open_subset(first.directory).train.image_dir == tmp_path / "other" / "train2017"
    shutil.rmtree(tmp_path / "other")
    assert build(first.coco_root).train.image_dir == first.train.image_dir
    assert str(tmp_path) not in json.dumps(first.identity)
    assert str(tmp_path / "other") in json.dumps(moved.provenance)


def test_changed_annotations_are_noticed(
    write_coco: Any, build: Build, reads: list[str], documents: Any
) -> None:
    root = write_coco()
    before = build(root)
    path = root / "annotations" / "instances_train2017.json"
    documents["train"]["annotations"].pop()
    path.write_text(json.dumps(documents["train"]))
    after = build(root)
    assert before.identity["annotations"]["train"] != after.identity["annotations"]["train"]
    assert reads == [*BOTH_DECODED, BOTH_DECODED[0]]


def test_a_touched_file_is_read_again_and_the_entry_kept(
    write_coco: Any, build: Build, reads: list[str]
) -> None:
    root = write_coco()
    before = build(root)
    entry_time = before.val_annotations.stat().st_mtime_ns
    os.utime(root / "annotations" / "instances_train2017.json", (1, 1))
    after = build(root)
    assert reads == [*BOTH_DECODED, BOTH_DECODED[0]]
    assert_same(before, after)
    assert after.val_annotations.stat().st_mtime_ns == entry_time


def test_verify_notices_what_size_and_time_hide(
    write_coco: Any, build: Build, reads: list[str]
) -> None:
    root = write_coco()
    before = build(root)
    path = root / "annotations" / "instances_train2017.json"
    status = path.stat()
    content = path.read_bytes()
    with path.open("r+b") as file:  # same inode
        file.write(content.replace(b'"license": 3', b'"license": 4'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert build(root).identity == before.identity
    assert build(root, verify=True).identity != before.identity
    assert reads[2:4] == ["sha256_of instances_train2017.json", BOTH_DECODED[0]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "emptied", "deleted"],
)
@pytest.mark.parametrize(
    "name", ["subset.json", "train.npz", "val.npz", "val_annotations.json", "index"]
)
def test_damage_is_repaired(
    write_coco: Any, build: Build, name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    root = write_coco()
    first = build(root)
    reference = build_subset(
        root, train_images=10, val_images=5, seed=0, cache_dir=tmp_path / "untouched"
    )
    if name == "index":
        cache = Cache(first.directory.parents[1])
        damage(cache.index_path(first.identity["annotations"]["train"]))
        shutil.rmtree(first.directory)
    else:
        damage(first.directory / name)
        with pytest.raises(DamagedError):
            open_subset(first.directory)
    repaired = build(root)
    assert repaired.directory == first.directory
    assert repaired.identity == reference.identity
    assert {p.name: p.read_bytes() for p in repaired.directory.iterdir()} == {
        p.name: p.read_bytes() for p in reference.directory.iterdir()
    }


def test_altered_content_of_equal_size_is_repaired(write_coco: Any, build: Build) -> None:
    root = write_coco()
    first = build(root)
    arrays = first.directory / "train.npz"
    good = arrays.read_bytes()
    arrays.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
    annotations = first.val_annotations.read_bytes()
    first.val_annotations.write_bytes(annotations.replace(b"1", b"2"))
    build(root, verify=True)
    assert arrays.read_bytes() == good
    assert first.val_annotations.read_bytes() == annotations


def test_an_image_that_disappears_is_noticed(write_coco: Any, build: Build) -> None:
    from qatval.core.errors import QatvalError

    root = write_coco()
    subset = build(root)
    gone = root / "train2017" / subset.train.file_names[3]
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(QatvalError, match=f"{gone.name}: no such image file"):
        build(root)
    gone.write_bytes(content)
    assert_same(subset, build(root))


def test_a_list_replaces_the_rule(write_coco: Any, build: Build, tmp_path: Path) -> None:
    root = write_coco()
    everything = build(root, train_images=None, val_images=None)
    chosen = everything.train.image_ids[[2, 5, 6]].tolist()
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(map(str, chosen[::-1])))
    subset = build(root, image_list=mine)
    assert subset.train.image_ids.tolist() == chosen
    assert subset.val.image_ids.tolist() == everything.val.image_ids[:5].tolist()
    assert subset.identity["train"]["rule"] == "list"
    mine.write_text(f"# the same\n{mine.read_text()}")
    assert build(root, image_list=mine).identity == subset.identity
    with mine.open("a") as file:
        file.write(f"\n{everything.val.file_names[9]}\n")
    listed = build(root, image_list=mine)
    assert listed.val.file_names == (everything.val.file_names[9],)


def test_few_files(write_coco: Any, build: Build, cache_dir: Path) -> None:
    build(write_coco())
    assert 4 < sum(path.is_file() for path in cache_dir.rglob("*")) <= 10


def test_dropped_boxes_are_told(
    write_coco: Any, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    build(write_coco())
    assert len(caplog.messages) == 2
    assert "instances_train2017.json: " in caplog.messages[0]
    assert "of no area" in caplog.messages[0]


def test_the_folder_in_a_run_root(write_coco: Any, build: Build, tmp_path: Path) -> None:
    root = write_coco()
    subset = build(root)
    write_dataset_folder(subset, tmp_path / "run" / "dataset")
    folder = tmp_path / "run" / "dataset"
    assert json.loads((folder / "provenance.json").read_text()) == subset.provenance
    listed = list(map(int, (folder / "train_images.txt").read_text().split()))
    assert listed == subset.train.image_ids.tolist()
    again = build(root, image_list=folder / "train_images.txt")
    assert again.train.file_names == subset.train.file_names
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert content == {
        "path": str(root),
        "train": "train2017",
        "val": "val2017",
        "nc": 5,
        "names": dict(enumerate(subset.class_names)),
    }


def test_the_default_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QATVAL_CACHE_DIR", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("QATVAL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "qatval" in default_cache_dir().parts


def test_categories_that_nothing_is_annotated_with_are_told(
    write_coco: Callable[..., Path],
    documents: dict[str, dict[str, Any]],
    build: Build,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for document in documents.values():
        for number in range(4):
            document["categories"].append({"id": 200 + number, "name": f"unused\n{number}"})
    documents["val"]["annotations"][0]["category_id"] = 202
    subset = build(write_coco(**documents))
    unused = [f"unused\n{number}" for number in range(4)]
    without = [name for name in unused if name != "unused\n2"]
    assert subset.provenance["unlabelled"] == {"train": unused, "val": without}
    said = [message for message in caplog.messages if "no annotation is of" in message]
    assert [message.rpartition("2017.json: ")[2] for message in said] == [
        r"no annotation is of these categories (4): 'unused\n0', 'unused\n1', 'unused\n2', ...",
        r"no annotation is of these categories (3): 'unused\n0', 'unused\n1', 'unused\n3'",
    ]


def test_the_first_images_of_a_split_keep_their_boxes(write_coco: Any, build: Build) -> None:
    val = build(write_coco()).val
    for images in (1, 3, len(val), len(val) + 1):
        part, count = val.first(images), min(images, len(val))
        assert len(part) == count
        assert part.file_names == val.file_names[:count]
        boxes = [val.boxes[val.offsets[n] : val.offsets[n + 1]] for n in range(count)]
        own = [part.boxes[part.offsets[n] : part.offsets[n + 1]] for n in range(count)]
        assert all(np.array_equal(a, b) for a, b in zip(boxes, own, strict=True))
        assert len(part.boxes) == len(part.classes) == part.offsets[-1]
        assert len(part.sizes) == count
