"""Reading the results.csv files of Ultralytics trainings, as they are and as they should not be."""

import math
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qatval.analysis.foreign_curve import read_curve
from qatval.core.errors import QatvalError
from qatval.core.trajectory import Point

V8 = """\
                  epoch,         train/box_loss,         train/cls_loss,    metrics/mAP50-95(B)
                      1,                    1.5,                    2.5,                   0.25
                      2,                   1.25,                   2.25,                    0.5
"""
V11 = V8.replace(" ", "").replace("epoch", "epoch,time").replace("1,1", "1,9.5,1")
V11 = V11.replace("2,1.25", "2,19.5,1.25")
V10 = """\
epoch,train/box_om,train/cls_om,train/dfl_om,train/box_oo,train/cls_oo,train/dfl_oo,metrics/mAP50(B),metrics/mAP50-95(B),val/box_om,lr/pg0
1,0.5,0.5,0.5,1,1,0.5,0.3,0.25,7,0.01
2,0.5,0.5,0.5,1,0.5,0.5,0.6,0.5,7,0.01
"""
POINTS = [Point(1, 0.25, 4.0), Point(2, 0.5, 3.5)]


@pytest.fixture
def read(tmp_path):
    def write_and_read(content):
        file = tmp_path / "results.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_curve(file)

    return write_and_read


@pytest.mark.parametrize("text", [V8, V11, V10], ids=["v8", "v11", "v10"])
def test_the_columns_of_versions_and_families(read, text):
    curve = read(text)
    assert curve.points == POINTS
    assert curve.metric == "metrics/mAP50-95(B)"
    assert len(curve.losses) == (6 if text is V10 else 2)
    assert not curve.notes


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.removesuffix("\n"),
        lambda text: text + "\n\n",
        lambda text: text.replace("0.25", '"0.25"'),
    ],
    ids=["BOM", "CRLF", "CR", "no last line end", "blank lines", "quotes"],
)
@pytest.mark.parametrize("text", [V8, V11, V10], ids=["v8", "v11", "v10"])
def test_ways_of_writing_the_same(read, text, change):
    assert read(change(text)) == read(text)


def test_the_columns_of_other_tasks(read):
    classes = read("epoch,train/loss,metrics/accuracy_top1,metrics/accuracy_top5\n1,2,.5,.9\n")
    assert (classes.metric, classes.points) == ("metrics/accuracy_top1", [Point(1, 0.5, 2.0)])
    masks = read(
        "epoch,train/box_loss,train/seg_loss,metrics/mAP50-95(M),metrics/mAP50-95(B)\n1,2,3,.4,.5\n"
    )
    assert (masks.metric, masks.points) == ("metrics/mAP50-95(B)", [Point(1, 0.5, 5.0)])


def test_without_training_losses_there_is_none(read):
    curve = read("epoch,metrics/mAP50-95(B)\n1,0.5\n")
    assert (curve.points, curve.losses) == ([Point(1, 0.5, None)], ())


def test_numbers_that_are_none(read):
    curve = read(V8 + "3, nan, 1, inf\n4, inf, 1, NaN\n5, 1, , 0.5\n6, 1, 1, \n")
    assert math.isnan(curve.points[2].loss)
    assert curve.points[2].value == math.inf
    assert curve.points[3].loss == math.inf
    assert math.isnan(curve.points[3].value)
    assert curve.points[4] == Point(5, 0.5, None)  # not recorded is not what is no number
    assert len(curve.points) == 5
    assert curve.notes == ["1 epoch without a value left out"]


def test_a_training_that_was_resumed_or_begun_anew_in_the_same_file(read):
    resumed = read(V8 + "3,1,1,0.6\n4,1,1,0.7\n3,2,2,0.65\n")
    assert resumed.points == [*POINTS, Point(3, 0.65, 4.0)]
    assert resumed.notes == ["2 epochs recorded again later: the later record counts"]
    assert read(V8 + "3,1,1,0.6\n" + V8).points == POINTS


def test_epochs_that_are_counted_from_0(read):
    curve = read(V8.replace("  1,", "  0,").replace("  2,", "  1,"))
    assert curve.points == POINTS
    assert curve.notes == ["the file counts epochs from 0, here they count from 1"]


@pytest.mark.parametrize("cut", ["3, 1", "3, 1, 1, -", "3, 1, 1, 0.5e", '3, 1, "1'])
def test_a_last_line_that_is_cut_off_is_left_out(read, cut):
    curve = read(V8 + cut)
    assert curve.points == POINTS
    assert curve.notes == ["the last line is cut off and left out"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (b"\x93NUMPY\x01\x00", "is no CSV in UTF-8"),
        (V8.encode("utf-16"), "is no CSV in UTF-8"),
        ("name,value\na,1\n", "has no column 'epoch'"),
        ("epoch,loss\n1,1\n", "has no column of metrics/mAP50-95(B), "),
        (V8.split("\n")[0] + "\n", "holds no epoch with metrics/mAP50-95(B)"),
        (V8 + "3,1,1\n4,1,1,0.5\n", "line 4: has 3 cells, the header has 4"),
        (V8 + "3,1,1,0.5,0.5\n", "line 4: has 5 cells, the header has 4"),
        (V8 + "3,1,tensor(1.),0.5\n", "line 4: 'train/cls_loss' is 'tensor(1.)', expected a num"),
        (V8 + "3.5,1,1,0.5\n", "line 4: epoch is '3.5', expected a whole number"),
        (V8 + "nan,1,1,0.5\n", "line 4: epoch is 'nan', expected a whole number"),
        (V8 + "1e300,1,1,0.5\n", "line 4: epoch is '1e300', expected a whole number"),
        (V8 + "-1,1,1,0.5\n", "line 4: epoch is '-1', expected a whole number"),
        (V8 + "3,1,1,50.2\n", "line 4: metrics/mAP50-95(B) is 50.2, expected 0 to 1"),
        (V8 + "3,1,\x1b[2Jx,1\n", r"line 4: 'train/cls_loss' is '\x1b[2Jx', expected a number"),
        (V8 + "3," + "9" * 200_000 + ",1,1\n", "is no CSV in UTF-8 (field larger than"),
        (V8 + "3," + "x" * 10_000 + ",1,1\n", "expected a number"),
    ],
)
def test_what_cannot_be_read_is_one_line(read, content, says):
    with pytest.raises(QatvalError) as error:
        read(content)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_what_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in (".", "missing.csv", "fifo"):
        with pytest.raises(QatvalError, match=r"expected the results\.csv of an Ultralytics train"):
            read_curve(tmp_path / name)


@settings(max_examples=300, deadline=None)
@given(
    text=st.sampled_from([V8, V11, V10]),
    edits=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.integers(0, 30),
            st.text(max_size=6) | st.sampled_from([",", "\n", '"', "nan", "\x00", "1e999", "\r"]),
        ),
        min_size=1,
        max_size=4,
    ),
)
@example(text=V8, edits=[(0, 0, '"')])
def test_whatever_became_of_a_file_it_is_read_or_refused_in_a_line(tmp_path_factory, text, edits):
    for at, removed, inserted in edits:
        text = text[:at] + inserted + text[at + removed :]
    file = tmp_path_factory.mktemp("mutated") / "results.csv"
    file.write_bytes(text.encode("utf-8", "replace"))
    refused, points = "", [Point(1, 0.0)]
    try:
        points = read_curve(file).points
    except QatvalError as error:
        refused = str(error)
    assert "\n" not in refused
    epochs = [point.epoch for point in points]
    assert epochs == sorted(set(epochs))
    assert epochs[0] >= 1
    assert all(not math.isfinite(point.value) or 0 <= point.value <= 1 for point in points)
