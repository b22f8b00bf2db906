"""The run summary's schema: what it lets through, and that checking it quickly is checking it."""

import copy
import json
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.core.schema import violations

METHODS = ["baseline", "ema+qc", "dampen+ema+qc", "bn", "ptq", "fp32", "fp32+ema", "of their own"]


@pytest.mark.parametrize("mode", ["w4a16", "w2a16", "w3a3", "w8a8"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_at_every_precision_has_a_valid_summary(make_summary, method, mode):
    assert violations(make_summary(method, mode=mode)) == []
    assert violations(make_summary(method, mode=mode, error="interrupted")) == []


def test_a_summary_of_an_older_tool_is_valid(make_summary, required_only):
    assert violations(required_only(make_summary())) == []


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("ema", {"quantization": {"mode": "w4"}}, "$.quantization.mode"),
        ("ema", {"quantization": {"mode": "w9a16"}}, "$.quantization.mode"),
        ("ema", {"quantization": {"mode": "w4a1"}}, "$.quantization.mode"),
        ("ema", {"quantization": {"weight_bit_width": 3}}, "$.quantization.weight_bit_width"),
        ("ema", {"quantization": {"activation_bit_width": 8}}, "$.quantization.activation_bit"),
        ("ema", {"quantization": {"library": "torchao"}}, "$.quantization.library"),
        ("fp32", {"quantization": {"library": "brevitas"}}, "$.quantization.library"),
        ("fp32", {"method": {"variant": "ema"}}, "$.method.variant"),
        ("ema", {"method": {"variant": "fp32+ema"}}, "$.method.variant"),
        ("ema", {"method": {"training": "distilled"}}, "$.method.training"),
        ("ema", {"oscillation": {"oscillating": 1.5}}, "$.oscillation.oscillating"),
    ],
)
def test_a_summary_that_contradicts_itself_is_refused(make_summary, method, changes, says):
    found = violations(make_summary(method, changes=changes))
    assert found
    assert found[0].startswith(says)


TEXT = (files("qatval.core") / "schemas" / "run_summary.schema.json").read_text("utf-8")
SCHEMA = json.loads(TEXT)
SECTIONS = [("oscillation", "epochs"), ("oscillation", "layers"), ("batchnorm", "layers")]
odd = st.sampled_from([None, True, False, "text", "", [], {}, -1, 0, 1, 7, 0.5, 1.0, 1.5, -0.1])


@given(section=st.sampled_from(SECTIONS), data=st.data())
def test_rows_are_refused_exactly_where_the_plain_validator_refuses_them(
    make_summary, section, data
):
    name, rows = section
    summary = copy.deepcopy(make_summary("baseline"))
    row = data.draw(st.sampled_from(summary[name][rows]))
    for field in data.draw(st.lists(st.sampled_from(sorted(row)), max_size=3, unique=True)):
        row[field] = data.draw(odd)
    if data.draw(st.booleans()):
        row.pop(data.draw(st.sampled_from(sorted(row))))
    plain = jsonschema.Draft202012Validator(SCHEMA).iter_errors(summary)
    assert sorted(violations(summary)) == sorted(f"{e.json_path}: {e.message}" for e in plain)
