"""How autopsies read."""

import pytest

from qatval.analysis.autopsies import causes, lines
from qatval.core.measurements import Autopsy, Probe

SCALE = Autopsy(
    epoch=3,
    images=16,
    good=0.526,
    broken=0.019,
    cause="scale",
    layer="model.2.conv",
    restored=0.91,
    probes=(
        Probe("scale", None, 0.5, 0.95),
        Probe("scale", "model.2.conv", 0.48, 0.91),
    ),
)
NOT_FOUND = Autopsy(
    epoch=9, images=8, good=0.4, broken=0.0, probes=(Probe("statistics", None, 0.1, 0.25),)
)
HELD_THERE = Autopsy(epoch=9, images=1, good=0.4, broken=0.3)
OVERFLOW = Autopsy(
    epoch=2,
    images=8,
    good=0.5,
    broken=0.0,
    cause="overflow",
    layer="model.2.bn",
    restored=0.96,
    probes=(Probe("overflow", "model.2.bn", 0.48, 0.96),),
)
NOT_FINITE = Autopsy(epoch=9, images=0, cause="training")
TO_THE_END = Autopsy(**{**{f: getattr(SCALE, f) for f in SCALE.__struct_fields__}, "epoch": 4})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], None),
        (
            [SCALE],
            "cause: a scale that left its value (model.2.conv) at epoch 3, 91.0 % restored",
        ),
        (
            [SCALE, TO_THE_END, NOT_FOUND],
            "cause: a scale that left its value (model.2.conv) at epochs 3 and 4, 91.0 % and "
            "91.0 % restored; not found at epoch 9",
        ),
        ([NOT_FINITE], "cause: the training itself, which diverged at epoch 9"),
    ],
)
def test_the_causes_in_a_phrase(found, said):
    assert causes(found) == said


def test_a_line_for_each_autopsy():
    assert list(lines([SCALE, NOT_FOUND, HELD_THERE, OVERFLOW, NOT_FINITE])) == [
        "epoch 3: cause: a scale that left its value (model.2.conv); on 16 images from 0.526 down "
        "to 0.019, of which came back with scales of the best weights 95.0 %; scales of the best "
        "weights (model.2.conv alone) 91.0 %",
        "epoch 9: cause: not found; on 8 images from 0.400 down to 0.000, of which came back with "
        "fresh BatchNorm statistics 25.0 %",
        "epoch 9: cause: not found; on 1 image from 0.400 down to 0.300 only",
        "epoch 2: cause: an overflow, of which BatchNorm statistics are not finite since "
        "(model.2.bn); on 8 images from 0.500 down to 0.000, of which came back with fresh "
        "BatchNorm statistics (model.2.bn and all behind) 96.0 %",
        "epoch 9: cause: the training itself, which diverged; weights are not finite",
    ]
