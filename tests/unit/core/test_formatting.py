"""What is shown of texts that somebody else wrote."""

import pytest

from qatval.core.formatting import printable, terminal_line


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
