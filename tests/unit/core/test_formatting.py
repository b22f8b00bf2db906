"""How numbers and texts of others are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.core.formatting import milliseconds, p_value, printable, rate, size, terminal_line


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0.0, "p < 0.001"),
        (0.00099, "p < 0.001"),
        (0.0123, "p 0.012"),
        (0.0496, "p 0.05"),
        (0.0504, "p > 0.05"),
        (0.31, "p 0.31"),
        (1.0, "p 1"),
    ],
)
def test_p_values(number, written):
    assert p_value(number) == written


@given(st.floats(0, 1))
def test_no_p_value_looks_as_if_it_told_that_does_not(number):
    said = p_value(number)
    assert not (number > 0.05 and said == "p 0.05")
    assert said != "p 0"


def test_sizes_and_short_times_have_three_digits():
    assert size(1_284_000) == "1.28 MB"
    times = (8.0, 81.23, 107.4, 1234.0)
    assert [milliseconds(ms) for ms in times] == ["8.00 ms", "81.2 ms", "107 ms", "1,234 ms"]


def test_rates_are_whole_percents():
    assert rate(0.7764) == "78 %"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("grün – 数 ✓", "grün – 数 ✓"),
        ("a\nyolo10m gate: open", r"a\nyolo10m gate: open"),
        ("\x1b[2J\x9b1A\r\x7f\0", r"\x1b[2J\x9b1A\r\x7f\x00"),
        ("a\u202eb\u2066c\u200fd", r"a\u202eb\u2066c\u200fd"),
        ("a\u200bb\u2028c\ufeff", r"a\u200bb\u2028c\ufeff"),
        ("gr\udcc3\udcbcn", "gr\udcc3\udcbcn"),
    ],
)
def test_what_a_terminal_would_act_on_is_quoted(text, shown):
    assert printable(text) == shown


def test_a_line_on_a_terminal_ends():
    assert len(terminal_line("x" * 100_000)) == 2001
    assert terminal_line("x" * 2000) == "x" * 2000


def test_a_line_on_a_terminal_is_one():
    assert terminal_line("a\nb\x1b[2J") == r"a\nb\x1b[2J"
