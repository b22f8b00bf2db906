"""Where charts put their ticks, points and lines, and how methods are told apart in them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.report.charts import Level, Row, Series, dot_chart, line_chart, range_chart
from qatval.report.drawing import SERIES, WIDTH, styles

values = st.floats(0, 1) | st.floats(-1e-6, 1e-6) | st.floats(-1e50, 1e50)
STYLES = list(styles(dict.fromkeys("ab", "method")).values())
STYLE = STYLES[0]


def roles(methods, controls):
    tested = {f"method {number}": "method" for number in range(methods)}
    return tested | {f"control {number}": "control" for number in range(controls)}


def test_no_two_of_a_hundred_methods_and_controls_are_drawn_alike():
    given = styles(roles(100, 100))
    assert len({*given.values(), *SERIES}) == 202
    assert all(style.hollow == name.startswith("control") for name, style in given.items())


def test_of_twenty_methods_and_controls_no_two_are_alike_without_colours():
    given = styles(roles(20, 20)).values()
    assert len({replace(style, colour=0) for style in given}) == 40
    assert len({style.marker for style in given}) == 7


def test_a_method_keeps_its_style_whatever_controls_stand_beside_it():
    assert styles(roles(5, 0)).items() <= styles(roles(5, 9)).items()


def inside(chart):
    for mark in chart.marks:
        assert chart.left - 0.1 <= mark.x <= chart.right + 0.1
        assert chart.top - 0.1 <= mark.y <= chart.bottom + 0.1
    for tick in chart.x_ticks:
        assert chart.left - 0.1 <= tick.at <= chart.right + 0.1 < WIDTH
    for tick in chart.y_ticks:
        assert chart.top - 0.1 <= tick.at <= chart.bottom + 0.1
    for segment in chart.segments:
        for x, y in ((segment.x1, segment.y1), (segment.x2, segment.y2)):
            assert chart.left - 0.1 <= x <= chart.right + 0.1
            assert 0 <= y <= chart.bottom
        # Only from a row to the next a line may go back to the left.
        assert segment.x1 <= segment.x2 or segment.kind == "join"


@given(st.lists(values, min_size=1, max_size=30), values, st.sampled_from([1, 10**17, 10**40]))
def test_a_line_chart_keeps_its_points_inside(series, level, first):
    points = list(enumerate(series, start=first))
    chart = line_chart(
        "t", "d", [Series("s", STYLE, points)], levels=[Level("l", level, "collapse")], show=str
    )
    inside(chart)
    assert len(chart.marks) == len(series)
    assert 1 <= len(chart.x_ticks) <= 10
    assert 2 <= len(chart.y_ticks) <= 8


def test_spans_are_bars_along_the_axis():
    points = [(epoch, 0.1) for epoch in range(1, 11)]
    chart = line_chart("t", "d", [Series("s", STYLE, points)], spans=[(1, 1), (4, 10)], show=str)
    inside(chart)
    dip, fall = (segment for segment in chart.segments if segment.kind == "fall")
    at = [mark.x for mark in chart.marks]
    assert dip.x1 <= at[0] <= dip.x2 < at[1]
    assert at[2] < fall.x1 <= at[3] < at[9] <= fall.x2
    assert dip.y1 == dip.y2 == fall.y1 <= chart.bottom


@given(st.lists(values, min_size=1, max_size=9))
def test_a_dot_chart_keeps_its_dots_inside(finals):
    dots = [(value, "", False, key) for key, value in enumerate(finals)]
    rows = [
        Row("one", STYLE, dots, finals[0], (min(finals) - 0.1, max(finals) + 0.1)),
        Row("two", STYLES[1], dots, None),
    ]
    chart = dot_chart("t", "d", rows, x_label="x", header=[], table=[])
    inside(chart)
    assert sum(segment.kind == "join" for segment in chart.segments) == len(finals)


def test_a_range_chart_has_a_bar_per_layer():
    ranges = [(f"layer {n}", 0.9, 1.1) for n in range(107)]
    chart = range_chart("t", "d", ranges, unchanged=1.0, header=[], show=str)
    assert sum(segment.kind == "range" for segment in chart.segments) == 107
    assert len(chart.rows) == 107


def test_ticks_are_round_numbers():
    chart = line_chart("t", "d", [Series("s", STYLE, [(1, 0.613), (2, 0.668)])], show=str)
    assert [tick.label for tick in chart.y_ticks] == ["0.62", "0.64", "0.66"]


def test_a_long_difference_has_two_lines_and_the_names_their_room():
    labels = ("dampen+ema+qc − dampen+ema", "ema − baseline", "a name of more than twenty letters")
    rows = [Row(label, STYLE, [(0.1, "", False, 0)], None) for label in labels]
    chart = dot_chart("t", "d", rows, x_label="x", header=[], table=[])
    assert [(tick.label, tick.second) for tick in chart.y_ticks] == [
        ("dampen+ema+qc", "− dampen+ema"),
        ("ema − baseline", ""),
        ("a name of more than…", ""),
    ]


def test_levels_of_a_dot_chart_have_labels_at_different_heights():
    rows = [Row("one", STYLE, [(0.6, "", False, 0)], None)]
    levels = [Level("FP32 checkpoint", 0.68, "fp32"), Level("untrained", 0.67, "untrained")]
    chart = dot_chart("t", "d", rows, x_label="x", levels=levels, header=[], table=[])
    heights = [segment.label_y for segment in chart.segments if segment.label]
    assert len(set(heights)) == 2
    assert min(heights) > 8


@pytest.mark.parametrize("value", [-0.3, -0.018, 0.01, 0.3])
def test_the_label_of_a_level_lies_in_the_drawing(value):
    rows = [
        Row("a name that needs room", STYLE, [(value, "", False, 0), (0.02, "", False, 1)], None)
    ]
    levels = [Level("control gains as much", 0.0, "zero")]
    chart = dot_chart("t", "d", rows, x_label="x", levels=levels, header=[], table=[])
    (label,) = [segment for segment in chart.segments if segment.label]
    width = 6 * len(label.label)
    left = label.label_x - (width if label.anchor == "end" else 0)
    assert left >= 0
    assert left + width <= WIDTH


def test_a_range_chart_can_have_a_table_of_its_own():
    more = [["layer", "432", "1.2 %"]]
    chart = range_chart(
        "t", "d", [("layer", 0.0, 0.012)], unchanged=0.0, header=[], show=str, table=more
    )
    assert chart.rows == more
