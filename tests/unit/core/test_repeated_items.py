"""Equal items of an array are checked against the schema once, invalid ones every time."""

import pytest

from qatval.core.schema import violations

GOOD = {"name": "a", "bits": 4, "reason": None}


@pytest.mark.parametrize("layers", [[GOOD, {"name": 7}], [GOOD, {"name": 7}, GOOD, {"name": 7}]])
def test_an_invalid_item_is_reported_wherever_it_stands(make_summary, layers):
    summary = make_summary(changes={"quantization": {"coverage": {"layers": layers}}})
    for _ in range(2):
        found = violations(summary)
        places = {line.split(":")[0] for line in found}
        wrong = [index for index, layer in enumerate(layers) if layer is not GOOD]
        assert {f"$.quantization.coverage.layers[{index}]" for index in wrong} <= places
        assert not any("layers[0]" in line for line in found)
