from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.core.errors import QatvalError
from qatval.data.coco import AnnotationIndex
from qatval.data.selection import draw_random, read_list, take_first, take_listed


def index_of(image_ids: list[int]) -> AnnotationIndex:
    count = len(image_ids)
    return AnnotationIndex(
        image_ids=np.array(sorted(image_ids), np.int64),
        sizes=np.ones((count, 2), np.int32),
        file_names=tuple(f"{image_id:012d}.jpg" for image_id in sorted(image_ids)),
        owners=np.zeros(0, np.int32),
        classes=np.zeros(0, np.int32),
        boxes=np.zeros((0, 4)),
        areas=np.zeros(0),
        crowds=np.zeros(0, np.bool_),
        category_ids=np.array([1]),
        category_names=("thing",),
    )


ids = st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=60)
seeds = st.integers(0, 2**31 - 1)


@given(ids, st.integers(1, 80), seeds)
def test_a_draw_is_ascending_unique_and_repeatable(ids: list[int], count: int, seed: int) -> None:
    index = index_of(ids)
    drawn = draw_random(index, count, seed)
    assert len(drawn.rows) == min(count, len(ids))
    assert (np.diff(drawn.rows) > 0).all()
    again = draw_random(index_of(ids[::-1]), count, seed)
    assert drawn.identity(index) == again.identity(index)


@given(ids, st.integers(1, 60), seeds)
def test_a_larger_draw_contains_the_smaller(ids: list[int], count: int, seed: int) -> None:
    index = index_of(ids)
    smaller, larger = (set(draw_random(index, n, seed).rows.tolist()) for n in (count, count + 5))
    assert smaller <= larger


def test_seeds_draw_differently_and_evenly() -> None:
    index = index_of(list(range(200)))
    hits = np.zeros(200)
    for seed in range(300):
        hits[draw_random(index, 20, seed).rows] += 1
    assert hits.sum() == 300 * 20
    # 30 expected, standard deviation 5.2
    assert hits.min() >= 8
    assert hits.max() <= 60


def test_the_draw_of_a_seed_never_changes() -> None:
    drawn = draw_random(index_of(list(range(100))), 8, 0)
    assert drawn.rows.tolist() == [2, 3, 11, 13, 20, 53, 59, 92]


@given(ids, st.integers(1, 80))
def test_first_are_the_smallest_ids(ids: list[int], count: int) -> None:
    index = index_of(ids)
    taken = take_first(index, count)
    assert index.image_ids[taken.rows].tolist() == sorted(ids)[:count]
    assert taken.seed is None


@pytest.mark.parametrize("count", [None, 3, 9])
def test_all_of_them_depend_on_no_seed(count: int | None) -> None:
    index = index_of([5, 3, 9])
    one, other = draw_random(index, count, 1), draw_random(index, count, 2)
    assert one.identity(index) == other.identity(index)
    assert one.rule == "all"


def test_a_list_names_ids_and_files_of_both_splits(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# mine\n 7\n\n./images/train2017/000000000003.jpg\n000000000007.jpg\n50\n")
    found = take_listed(read_list(path), {"train": index_of([1, 3, 7]), "val": index_of([50, 60])})
    assert {split: chosen.rows.tolist() for split, chosen in found.items()} == {
        "train": [1, 2],
        "val": [0],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3\n4\n", "line 2: '4' is neither an image id nor a file name"),
        ("nothing.jpg", "line 1: 'nothing.jpg' is neither"),
        ("# only this\n", "names no image"),
        (b"\xff\xfe", "cannot be read"),
        ("9" * 5000, "is neither an image id nor a file name"),
        ("x" * 10_000_000, r"line 1: 'x{199} is neither"),
        ("\n" * 5000 + "a\x1b[2J", r"line 5001: 'a\\x1b\[2J' is neither"),
        ("\0", "line 1: '.x00' is neither"),
        (None, "cannot be read"),
    ],
)
def test_bad_lists(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(QatvalError, match=message) as caught:
        take_listed(read_list(path), {"train": index_of([1, 3, 7])})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
