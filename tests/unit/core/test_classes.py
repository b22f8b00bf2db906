"""Classes are found by name: in order, in another order, written differently, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.core.classes import match_classes
from qatval.core.errors import QatvalError

NAMES = ("person", "traffic light", "hot dog", "T-Shirt")


def test_the_same_names_in_order_need_no_word() -> None:
    match = match_classes(NAMES, NAMES)
    assert (match.kind, match.rows, match.renamed, match.said) == ("same", (0, 1, 2, 3), {}, "")


@given(order=st.permutations(range(len(NAMES))))
def test_any_order_is_found(order: list[int]) -> None:
    dataset = [NAMES[index] for index in order]
    match = match_classes(dataset, NAMES)
    assert [NAMES[row] for row in match.rows] == dataset
    assert match.kind == ("same" if order == sorted(order) else "mapped")
    assert bool(match.said) == (match.kind == "mapped")


@pytest.mark.parametrize(
    "dataset",
    [
        ("Person", "traffic_light", "hot-dog", "t-shirt"),
        ("PERSON", "TrafficLight", "hotdog", "tshirt"),
        ("person ", " traffic  light", "ｈｏｔ dog", "T_SHIRT"),
    ],
)
def test_case_spaces_underscores_and_hyphens_make_no_other_class(dataset: tuple[str, ...]) -> None:
    match = match_classes(dataset, NAMES)
    assert (match.kind, match.rows) == ("same", (0, 1, 2, 3))
    assert match.renamed == dict(zip(dataset, NAMES, strict=True))
    assert "are taken for the same: " in match.said
    assert match_classes(dataset[::-1], NAMES).rows == (3, 2, 1, 0)


def test_names_that_only_spelling_tells_apart_are_not_mixed_up() -> None:
    assert match_classes(("us", "US"), ("US", "us")).rows == (1, 0)
    with pytest.raises(QatvalError, match="detects other classes"):
        match_classes(("us", "US"), ("US", "u s"))


@pytest.mark.parametrize(
    ("checkpoint", "says"),
    [
        (None, "the checkpoint names no classes"),
        (("0", "1", "2", "3"), "the checkpoint's class names are placeholders such as '0'"),
        (("class0", "class1", "class2", "class3"), "placeholders such as 'class0'"),
        (("Class 1", "Class 2", "Class 3", "Class 4"), "placeholders such as 'Class 1'"),
        (("label_0", "label_1", "label_2", "label_3"), "placeholders"),
    ],
)
def test_without_names_indices_are_taken_as_they_are(
    checkpoint: tuple[str, ...] | None, says: str
) -> None:
    match = match_classes(NAMES, checkpoint)
    assert (match.kind, match.rows) == ("unknown", (0, 1, 2, 3))
    assert says in match.said
    assert "could not be compared" in match.said


def test_a_dataset_without_names_is_not_refused_either() -> None:
    match = match_classes(("0", "1", "2", "3"), NAMES)
    assert match.kind == "unknown"
    assert "the dataset's class names are placeholders" in match.said


def test_digits_that_are_names_on_both_sides_are_names() -> None:
    assert match_classes(("1", "2", "0"), ("0", "1", "2")).rows == (1, 2, 0)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (
            ("person", "traffic light", "hot dog", "tie"),
            "only the dataset has 'tie', only the checkpoint has 'T-S",
        ),
        (("a", "b", "c", "d"), "has 'a', 'b', 'c' and 1 more, .* 'hot dog' and 1 more; give"),
        (("aeroplane", "traffic light", "hot dog", "T-Shirt"), "'aeroplane', .* 'person';"),
        (("person", "person", "hot dog", "T-Shirt"), "the dataset has 2 named 'person'"),
        (("7", "traffic light", "hot dog", "T-Shirt"), "'7', only the checkpoint has 'person'"),
    ],
)
def test_other_names_are_refused_with_the_difference(dataset: tuple[str, ...], says: str) -> None:
    with pytest.raises(QatvalError, match=says) as caught:
        match_classes(dataset, NAMES)
    assert "\n" not in str(caught.value)
