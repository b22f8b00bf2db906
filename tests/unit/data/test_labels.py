from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qatval.data.coco import AnnotationIndex
from qatval.data.labels import LabelCounts, Labels, settled, training_labels

HEIGHT, WIDTH = 60, 80
coordinate = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 60.0, 80.0, float("inf"), float("nan")])
boxes = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=12)


def index_of(bboxes: list[tuple[float, ...]], owners: list[int] | None = None) -> AnnotationIndex:
    count = len(bboxes)
    return AnnotationIndex(
        image_ids=np.array([3, 8]),
        sizes=np.array([[HEIGHT, WIDTH]] * 2, np.int32),
        file_names=("3.jpg", "8.jpg"),
        owners=np.array(owners or [0] * count, np.int32),
        classes=np.zeros(count, np.int32),
        boxes=np.array(bboxes, np.float64).reshape(-1, 4),
        areas=np.ones(count),
        crowds=np.zeros(count, np.bool_),
        category_ids=np.array([7]),
        category_names=("thing",),
    )


def labels_of(index: AnnotationIndex, *rows: int) -> tuple[Labels, LabelCounts]:
    left, counts = settled(index, np.array(rows))
    return training_labels(left), counts


@given(boxes)
def test_labels_lie_in_the_image_and_every_annotation_is_accounted_for(
    bboxes: list[tuple[float, ...]],
) -> None:
    labels, counts = labels_of(index_of(bboxes), 0, 1)
    assert np.isfinite(labels.boxes).all()
    low, high = labels.boxes[:, :2], labels.boxes[:, 2:]
    assert ((labels.boxes >= 0) & (labels.boxes <= 1)).all()
    assert (low - high / 2 > -1e-6).all()
    assert (low + high / 2 < 1 + 1e-6).all()
    dropped = counts.crowd + counts.degenerate + counts.outside + counts.duplicate
    assert counts.boxes + dropped == counts.annotations == len(bboxes)


@given(
    st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1), st.floats(0.01, 1.0), st.floats(0.01, 1.0)
)
def test_a_box_inside_comes_back_in_pixels(x: float, y: float, w: float, h: float) -> None:
    labels, _ = labels_of(index_of([(x, y, w, h)]), 0, 1)
    centre_x, centre_y, width, height = labels.boxes[0].astype(float)
    back = (centre_x - width / 2) * WIDTH, (centre_y - height / 2) * HEIGHT
    np.testing.assert_allclose(back, (x, y), atol=1e-4)
    np.testing.assert_allclose((width * WIDTH, height * HEIGHT), (w, h), atol=1e-4)


def test_labels_keep_the_files_order_within_an_image() -> None:
    index = index_of([(9, 9, 9, 9), (1, 1, 1, 1), (5, 5, 5, 5), (9, 9, 9, 9)], [1, 0, 1, 1])
    labels, counts = labels_of(index, 1)
    assert labels.offsets.tolist() == [0, 2]
    np.testing.assert_allclose(labels.boxes[:, 2] * WIDTH, [9, 5], rtol=1e-6)
    assert counts.duplicate == 1


def test_the_same_box_in_another_image_is_no_duplicate() -> None:
    labels, counts = labels_of(index_of([(1, 2, 3, 4)] * 2, [0, 1]), 0, 1)
    assert labels.offsets.tolist() == [0, 1, 2]
    assert counts.duplicate == 0
