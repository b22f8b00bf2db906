"""How numbers are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.core.formatting import p_value, rate


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


def test_rates_are_whole_percents():
    assert rate(0.7764) == "78 %"
