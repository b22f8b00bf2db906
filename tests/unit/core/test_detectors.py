"""What families of detectors say, and that what they say fits what Ultralytics builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from qatval.core import presets
from qatval.core.detectors import detector_of
from qatval.core.errors import UsageError

VARIANTS = [presets.variant(name) for name in presets.variant_names()]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.architecture)
def test_every_variant_is_of_a_family(variant: presets.Variant) -> None:
    assert variant.detector is detector_of(variant.architecture)
    assert variant.detector is detector_of(str(Path("elsewhere") / variant.architecture))
    assert (variant.detector.nms_iou is None) == (variant.detector.head == "one2one")


@pytest.mark.parametrize("name", ["yolov9c.yaml", "yolov10n-seg.yaml", ""])
def test_an_unknown_architecture_is_refused_with_the_families(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected one of .*yolov10\?\.yaml") as caught:
        detector_of(name)
    assert "\n" not in str(caught.value)


def test_the_contract_is_the_three_sizes_of_yolov10() -> None:
    assert presets.validated_variants() == ("yolo10n", "yolo10s", "yolo10m")
    assert presets.variant("yolo10m").requires == ("yolo10n", "yolo10s")
    assert not any(presets.variant(name).requires for name in ("yolo10n", "yolo10s"))


@pytest.mark.parametrize("preset", presets.quantization_names())
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.architecture)
def test_a_preset_takes_its_layers_from_the_family(preset: str, variant: presets.Variant) -> None:
    found = presets.quantization(preset, variant.detector)
    assert (found.boundary, found.exempt) == (variant.detector.boundary, variant.detector.exempt)
