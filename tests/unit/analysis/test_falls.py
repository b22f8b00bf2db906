"""How the verdict on a trajectory reads."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.analysis.falls import fall_lines, headline, remarkable, repaired
from qatval.core.trajectory import Point, judge

NUMBERS = st.floats(0, 1) | st.sampled_from([0.0, 0.4, 0.8, math.nan])


def judged(values, losses=(), after=None):
    losses = [*losses, *[None] * len(values)]
    points = [Point(n, v, loss) for n, (v, loss) in enumerate(zip(values, losses), start=1)]  # noqa: B905
    return judge(points, after)


FALLING = [9.0 - 0.1 * n for n in range(30)]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (judged([0.3, 0.4]), "held"),
        (judged([0.3, 0.1, 0.3]), "held; a dip at epoch 2"),
        (judged([0.3, 0.1, 0.3, 0.1, 0.3]), "held; dips at epochs 2 and 4"),
        (judged([0.0, 0.0]), "never learned"),
        (judged([0.3, 0.1, 0.1], FALLING), "evaluation diverged at epoch 2"),
        (
            judged([0.3, 0.1, 0.1, 0.3, 0.1, 0.001], FALLING),
            "evaluation diverged at epochs 2 and 5, with nothing left from epoch 6",
        ),
        (judged([0.3, 0.001, 0.1], FALLING), "evaluation diverged at epoch 2, with nothing left"),
        (judged([0.3, 0.001, 0.1, 0.3], FALLING), "evaluation diverged at epoch 2"),
        (judged([0.3, 0.1, 0.1], [3.0, 5.0, 5.0]), "training diverged at epoch 2"),
        (
            judged([0.3, 0.1, 0.1, 0.3, 0.1], [3.0, 5.0, 5.0, 2.9, 2.8]),
            "training diverged at epoch 2; evaluation diverged at epoch 5",
        ),
        (judged([0.3, 0.1, 0.1]), "diverged at epoch 2"),
        (
            judged([0.3, 0.3], [3.0, math.nan]),
            "training diverged: its loss is not a number in epoch 2",
        ),
        (
            judged([0.3, 0.1], FALLING, after=0.29),
            "evaluation diverged at epoch 2, repaired by QC",
        ),
        (judged([0.3, 0.3], FALLING, after=0.1), "diverged by QC"),
    ],
)
def test_headline(found, said):
    assert headline(found, "QC") == said


def test_the_lines_of_falls():
    found = judged([0.4, 0.1, 0.002, 0.1, 0.3, 0.3, 0.05], FALLING, after=0.3)
    assert list(fall_lines(found, "QC")) == [
        "epoch 2: from 0.400 (epoch 1) down to 0.002 (epoch 3), below half of it for 3 epochs, "
        "below 1 % from epoch 3, back at 5; "
        "training loss did not rise: 9 at the lowest before, 8.9 then",
        "epoch 7: from 0.400 (epoch 1) down to 0.050 (epoch 7), below half of it for 1 epoch, "
        "repaired by QC; training loss did not rise: 8.5 at the lowest before, 8.4 then",
    ]
    assert repaired(found, "QC") == (
        "QC repaired a collapse: the training ended below half of its best, 0.400, since epoch 7"
    )
    assert repaired(judged([0.4, 0.1])) is None
    (line,) = fall_lines(judged([0.4, 0.5], FALLING, after=0.01), "QC")
    assert line == "QC: from 0.500 (epoch 2) down to 0.010"
    (line,) = fall_lines(judged([0.4, math.nan], [3.0, math.inf]))
    assert "down to not a number (epoch 2)" in line
    assert line.endswith("training loss rose: 3 at the lowest before, not a number then")


def test_a_run_that_simply_held_has_nothing_to_tell():
    assert remarkable(None) is None
    assert remarkable(judged([0.3, 0.4])) is None
    assert remarkable(judged([0.3, 0.1, 0.4])) == "held; a dip at epoch 2"


@given(st.lists(st.tuples(NUMBERS, NUMBERS | st.none()), min_size=1, max_size=12), NUMBERS)
def test_whatever_fell_every_fall_has_its_line(measured, after):
    points = [Point(number, *both) for number, both in enumerate(measured, start=1)]
    found = judge(points, after)
    lines = list(fall_lines(found))
    assert len(lines) == len(found.falls)
    assert found.verdict in headline(found)
    for fall, line in zip(found.falls, lines, strict=True):
        assert line.startswith("what came" if fall.epoch is None else f"epoch {fall.epoch}: ")
        assert "None" not in line
