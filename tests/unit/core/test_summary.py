"""The run summary: what its schema and its struct let through, which is the same."""

import copy
import json
from importlib.resources import files

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatval.analysis.document import Comparison
from qatval.core.errors import QatvalError
from qatval.core.schema import violations
from qatval.core.summary import SUMMARY_NAME, RunSummary, load_summary, read_summary, write_summary
from qatval.testing import as_json, build_summary, changed, merged, reduced_to_required

METHODS = ["baseline", "ema+qc", "dampen+ema+qc", "bn", "ptq", "fp32", "fp32+ema", "of their own"]

# What the builder leaves out, so that every part of the form is in one document or another.
ALL_ELSE = {
    "model": {
        "checkpoint_sha256": "0" * 64,
        "classes": {
            "match": "mapped",
            "rows": [1, 0],
            "renamed": {"traffic_light": "traffic light"},
        },
    },
    "method": {
        "bn": {"how": "shifted"},
        "ema": {"updates": 96},
        "teacher": {"weight": 1.0, "task": 0.5, "hold_statistics": True},
        "rounding": {"images": 128, "by": "gptq"},
        "post_training": [{"implementation": "a.b:C", "settings": {}, "report": {"x": 1}}],
    },
    "dataset": {
        "requested": {"train_images": None, "val_images": 128},
        "counts": {"train": {"boxes": 3, "crowd": 0}},
        "worrying_share": 0.01,
        "unlabelled": {"val": ["toaster"]},
    },
    "warnings": ["2.0% of 900 train annotations were dropped"],
    "training": {
        "fused": True,
        "tracked": True,
        "batchnorm": "running",
        "peak_memory_mb": 1297,
        "stopped": "interrupted",
    },
    "artifacts": {
        "val_annotations": "a.json",
        "val_image_dir": "val2017",
        "oscillation_csv": None,
        "weights": "integer.safetensors",
        "predictions": "predictions.json",
    },
    "stability": {
        "degenerate": False,
        "trajectory": {
            "verdict": "evaluation diverged",
            "loss_not_finite": 2,
            "falls": [
                {
                    "epoch": 2,
                    "best": 0.6,
                    "best_epoch": 0,
                    "lowest": 0.001,
                    "lowest_epoch": 2,
                    "epochs": 1,
                    "recovered": 3,
                    "repaired": True,
                    "lost": 2,
                    "loss_before": 3.5,
                    "loss_then": 3.25,
                    "loss_rose": False,
                }
            ],
        },
    },
    "metrics": {
        "map50": 0.8,
        "precision": 0.8,
        "recall": 0.7,
        "best_epoch": 0,
        "coco": {
            "map": 0.6,
            "map50": 0.8,
            "matched_map": 0.6,
            "matched_difference": 0.001,
            "interpolated_map": 0.6,
            "tolerance": 0.002,
        },
    },
    "failed_checks": [{"name": "reload", "detail": "0.3 and 0.4"}],
    "configuration": {"variant": "yolo10n"},
    "autopsies": [
        {
            "epoch": 2,
            "images": 16,
            "good": 0.6,
            "broken": 0.001,
            "cause": "scale",
            "layer": "model.0.conv",
            "restored": 0.9,
            "probes": [
                {"repaired": "averaged scale", "layer": None, "value": 0.0, "restored": 0.0},
                {"repaired": "scale", "layer": "model.0.conv", "value": 0.54, "restored": 0.9},
            ],
        }
    ],
    "resumed": [{"at": "2026-01-01T00:00:00+00:00", "stage": "training", "steps": 34}],
}


@pytest.mark.parametrize("mode", ["w4a16", "w2a16", "w3a3", "w8a8"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_at_every_precision_has_a_valid_summary(method, mode):
    assert violations(as_json(build_summary(method, mode=mode))) == []
    assert violations(as_json(build_summary(method, mode=mode, error="interrupted"))) == []


def test_a_summary_of_an_older_tool_is_valid():
    assert violations(as_json(reduced_to_required(build_summary()))) == []


@pytest.mark.parametrize("summary", [build_summary(), build_summary("fp32", error="interrupted")])
def test_what_is_written_is_what_is_read(tmp_path, summary):
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == (summary, as_json(summary))
    assert load_summary(tmp_path / SUMMARY_NAME) == summary


def test_what_this_version_does_not_know_is_kept_beside_the_summary(tmp_path):
    recorded = as_json(build_summary()) | {"weather": {"clouds": "few"}}
    (tmp_path / SUMMARY_NAME).write_text(json.dumps(recorded))
    summary, document = read_summary(tmp_path)
    assert summary == build_summary()
    assert document == recorded


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"imgsz": 0}}, "Expected `int` >= 1 - at `$.model.imgsz`"),
        ({"model": {"imgsz": "128"}}, "Expected `int`, got `str` - at `$.model.imgsz`"),
        ({"metrics": {"ptq_value": {}}}, "Expected `float | null`, got `object`"),
        ({"quantization": {"mode": "w9a16"}}, "at `$.quantization.mode`"),
        ({"quantization": {"weight_bit_width": 3}}, "w4a16 has 4 and null bits, not 3 and None"),
        ({"created_at": "today"}, "expected created_at as RFC 3339 has it, got 'today'"),
        ({"method": {"variant": "fp32"}}, "method 'fp32' does not fit mode w4a16"),
        ({"status": "incomplete"}, "an incomplete run must say why under 'error'"),
        ({"stability": {"collapsed": None}}, "a completed run must say whether it collapsed"),
    ],
    ids=str,
)
def test_what_was_expected_and_what_came_is_one_line(tmp_path, changes, expected):
    file = tmp_path / SUMMARY_NAME
    file.write_text(json.dumps(merged(as_json(build_summary()), changes)))
    with pytest.raises(QatvalError) as error:
        load_summary(tmp_path)
    assert str(error.value).startswith(f"{file} is not a run summary: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


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
def test_a_summary_that_contradicts_itself_is_refused(method, changes, says):
    document = merged(as_json(build_summary(method)), changes)
    assert violations(document)[0].startswith(says)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, RunSummary)


def schema(name):
    text = (files("qatval.core") / "schemas" / f"{name}.schema.json").read_text("utf-8")
    return json.loads(text)


def named(node, root):
    """Return the dotted names of all properties that a JSON Schema knows."""
    if "$ref" in node:
        return named(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    found = set().union(*(named(option, root) for option in node.get("anyOf", [])))
    for name, of in node.get("properties", {}).items():
        found |= {name, *(f"{name}.{more}" for more in named(of, root))}
    for of in (node.get("items"), node.get("additionalProperties")):
        if isinstance(of, dict):
            found |= {f"[].{more}" for more in named(of, root)}
    return found


@pytest.mark.parametrize(
    ("kind", "name"), [(RunSummary, "run_summary"), (Comparison, "comparison")]
)
def test_the_schema_publishes_every_field_and_no_other(kind, name):
    generated = msgspec.json.schema(kind)
    assert named(schema(name), schema(name)) == named(generated, generated)


DOCUMENTS = [
    as_json(changed(build_summary("dampen+ema+qc", resamples=2), ALL_ELSE)),
    as_json(build_summary("fp32", resamples=2)),
    as_json(build_summary("ptq", mode="w3a8", error="interrupted")),
    as_json(reduced_to_required(build_summary())),
]


# 1.0 is an integer to a JSON Schema and none to msgspec: no such number is among them.
odd = st.sampled_from(
    [
        *(None, True, False, -1, 0, 1, 2, 4, 9, 0.5, 1.5, -0.1, "", "text", [], {}, [1]),
        {"name": "x"},
        *[
            "fp32",
            "ema",
            "fp32+ema",
            "w4a16",
            "w2a8",
            "brevitas",
            "per-tensor",
            "max",
            "kept",
            "none",
            "incomplete",
        ],
        *["completed-failed", "1.7", "2.0", "2026-03-01T12:00:00", "2026-03-01T12:00:00Z"],
        *("2026-02-30t12:00:00z", "2026-03-01 12:00:00+00:00"),
    ]
)


def change_at_random(document, data):
    """Remove or replace a value at some depth, each level's keys being equally likely."""
    holder = document
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], dict | list) or not holder[key] or data.draw(st.booleans()):
            break
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = copy.deepcopy(data.draw(odd))


@settings(max_examples=500, deadline=None)
@given(original=st.sampled_from(DOCUMENTS), data=st.data())
def test_schema_and_struct_refuse_the_same(original, data):
    document = copy.deepcopy(original)
    for _ in range(data.draw(st.integers(1, 2))):
        change_at_random(document, data)
    try:
        msgspec.convert(document, RunSummary)
        refused = None
    except msgspec.ValidationError as error:
        refused = str(error)
    found = violations(document)
    assert bool(found) == (refused is not None), (found, refused)
