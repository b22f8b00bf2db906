"""What methods cost: minutes, the delivered file, and what it takes in its runtimes."""

import pytest
from msgspec import convert

from qatval.analysis.comparison import compare
from qatval.analysis.costs import executions, naming, precisions
from qatval.core.deployment import DeploymentRecord
from qatval.testing import build_deployment, build_summary, changed, loaded, merged


def costs(*runs):
    (group,) = compare(list(runs)).groups
    return group.costs


def run(method="ema", seed=0, **changes):
    summary = build_summary(method, seed, (0.4, 0.6, 0.64))
    if "timings" in changes:  # in their place, not among them
        summary = changed(summary, {"timings": None})
    return loaded(changed(summary, changes))


def slower(deployment, **latency):
    """Return a deployment whose own file was measured otherwise, in its first runtime."""
    exported = deployment["exported"]
    first, *others = exported["runtimes"]
    first = merged(first, {"latency": latency})
    return merged(deployment, {"exported": {"runtimes": [first, *others]}})


def test_the_mean_stands_beside_how_many_runs_collapsed():
    collapsed = loaded(build_summary("ema", 1, (0.4, 0.6, 0.1)))
    diverged = loaded(build_summary("ema", 2, (0.0, 0.0), changes={"metrics": {"best_value": 0}}))
    (cost,) = costs(run(), collapsed, diverged).methods
    assert (cost.runs, cost.collapsed) == (3, 2)
    assert cost.final_value.mean == pytest.approx((0.64 + 0.1) / 3)
    assert cost.share_of_fp32.mean == pytest.approx((0.64 + 0.1) / 3 / 0.682)


def test_minutes_are_of_what_makes_a_model_and_name_who_shares_a_training():
    spent = {"start of training": 30.0, "training": 60.0, "correction": 30.0, "other methods": 99.0}
    found = costs(
        run("baseline", timings={"training": 60.0, "FP32 checkpoint": 40.0}),
        run("ema+qc", 0, timings=spent),
        run("ema+qc", 1, timings={"training": 120.0}),
        run("fp32", timings={}),
    )
    minutes = {cost.method: cost.minutes for cost in found.methods}
    assert minutes == {"baseline": 1.0, "ema+qc": 2.0, "fp32": None}
    shared = {cost.method: cost.training_shared_with for cost in found.methods}
    assert shared == {"baseline": ["ema+qc"], "ema+qc": ["baseline"], "fp32": []}
    (note,) = found.notes
    assert note.endswith("counts in full for each of them: baseline, ema+qc")


def test_where_nothing_is_shared_or_known_nothing_is_said_of_it():
    assert costs(run("baseline"), run("freeze")).notes == [
        "minutes are what one model takes to make, mean over runs, scores left out"
    ]
    assert costs(run(timings={})).notes == []


def test_incomplete_runs_cost_nothing():
    stopped = loaded(build_summary("ema", 1, (0.2,), error="interrupted"))
    (cost,) = costs(run(timings={"training": 60.0}), stopped).methods
    assert (cost.runs, cost.minutes) == (1, 1.0)


def test_the_file_is_the_exported_one_else_the_weights_that_the_run_left():
    weights = "ultralytics/a/weights/integer.safetensors"
    sha = "0" * 64
    recorded = {
        "artifacts": {"weights": weights},
        "files": {
            weights: {"bytes": 3_000_000, "sha256": sha},
            "ultralytics/a/weights/last.safetensors": {"bytes": 9, "sha256": sha},
        },
    }
    (cost,) = costs(run(**recorded)).methods
    assert (cost.file.kind, cost.file.bytes) == ("safetensors", 3_000_000)
    assert (cost.file.weights, cost.file.share_of_fp32) == (None, None)
    (cost,) = costs(run(deployment=build_deployment(size=957_300), **recorded)).methods
    assert (cost.file.kind, cost.file.bytes, cost.file.weights) == ("onnx", 957_300, "int4")
    assert cost.file.share_of_fp32 == pytest.approx(0.1)
    (cost,) = costs(run()).methods
    assert cost.file is None


def test_runs_that_were_measured_alike_are_one_measurement():
    found = costs(
        run(seed=0, deployment=build_deployment(median_ms=8.0, runtimes=["onnxruntime"])),
        run(seed=1, deployment=build_deployment(median_ms=9.0, runtimes=["onnxruntime"])),
        run(seed=2, deployment=build_deployment(median_ms=8.2, runtimes=["onnxruntime"])),
    )
    (cost,) = found.methods
    (it,) = cost.runtimes
    assert (it.name, it.version, it.threads, it.cpu) == ("onnxruntime", "1.32.0", 1, "a processor")
    assert (it.runs, it.resident_mb, it.executed) == (3, 118, {"float32": 94})
    assert (it.median_ms, it.low_ms, it.high_ms) == pytest.approx((8.2, 7.91, 9.21))
    (reference,) = found.fp32.runtimes
    assert (reference.median_ms, reference.runs) == (8.05, 3)
    assert (found.fp32.file.bytes, found.fp32.file.weights) == (9_573_000, "float")


def test_memory_that_a_system_does_not_tell_is_not_made_up():
    def telling(mebibytes):
        deployment = build_deployment(runtimes=["onnxruntime"])
        deployment["exported"]["runtimes"][0]["resident_mb"] = mebibytes
        return deployment

    def memory(*found):
        runs = [run(seed=seed, deployment=telling(it)) for seed, it in enumerate(found)]
        ((it,),) = [cost.runtimes for cost in costs(*runs).methods]
        return it.resident_mb

    assert (memory(None), memory(None, 90), memory(100, 90)) == (None, 90, 100)


@pytest.mark.parametrize(
    ("deployment", "more"),
    [
        (slower(build_deployment(runtimes=["onnxruntime"]), threads=2), {}),
        (build_deployment(runtimes=["openvino"]), {}),
        (build_deployment(runtimes=["onnxruntime"]), {"environment": {"cpu": "another"}}),
        (build_deployment(runtimes=["onnxruntime"], executed={"int8": 94}), {}),
        (build_deployment(runtimes=["onnxruntime"], weights="int8"), {}),
    ],
)
def test_what_was_measured_unlike_stands_apart(deployment, more):
    one = run(seed=0, deployment=build_deployment(runtimes=["onnxruntime"]))
    (cost,) = costs(one, run(seed=1, deployment=deployment, **more)).methods
    assert [it.runs for it in cost.runtimes] == [1, 1]


def test_names_are_as_long_as_it_takes_to_tell_measurements_apart():
    def names(*deployments):
        runs = [run(seed=seed, deployment=it) for seed, it in enumerate(deployments)]
        (cost,) = costs(*runs).methods
        named = naming(cost.runtimes)
        return [named(it) for it in cost.runtimes]

    both = build_deployment()
    assert names(both) == ["ONNX Runtime", "OpenVINO"]
    assert names(both, slower(both, threads=2)) == [
        "ONNX Runtime 1.32.0, 1 thread on a processor",
        "OpenVINO 2026.4.1, 1 thread on a processor",
        "ONNX Runtime 1.32.0, 2 threads on a processor",
    ]


def said_of(executed, weights="int4"):
    record = convert(build_deployment(executed=executed, weights=weights), DeploymentRecord)
    file = record.exported
    return list(executions(("", file.weights, it) for it in file.runtimes[:1]))


@pytest.mark.parametrize(
    ("executed", "weights", "said"),
    [
        (
            {"float32": 94},
            "int4",
            "computed all 94 convolutions in float32: int4 is how the file stores weights, not "
            "what is computed in",
        ),
        (
            {"f32": 14, "i8": 80},
            "int4",
            "computed 80 of 94 convolutions in i8, 14 in f32: int4 is how the file stores weights, "
            "not what is computed in",
        ),
        (
            {"int8": 80, "float32": 14},
            "int8",
            "computed 80 of 94 convolutions in int8, 14 in float32",
        ),
        (
            {"uint8, weights int8": 80, "float32, weights int4": 14},
            "int4",
            "computed 80 of 94 convolutions in uint8 with int8 weights, 14 in float32 with int4 "
            "weights: int4 is how the file stores weights, not what is computed in",
        ),
        (
            {"uint8, weights int8": 94},
            "int8",
            "computed all 94 convolutions in uint8 with int8 weights",
        ),
        ({"u4": 94}, "int4", "computed all 94 convolutions in u4"),
        (
            {"bf16": 94},
            "int8",
            "computed all 94 convolutions in bf16: int8 is how the file stores weights, not what "
            "is computed in",
        ),
    ],
)
def test_what_a_runtime_says_it_computed_in_stands_beside_what_is_stored(executed, weights, said):
    assert said_of(executed, weights) == [f"ONNX Runtime 1.32.0 {said}"]


def test_a_file_in_float_says_nothing_that_could_be_misread():
    assert said_of({"float32": 94}, "float") == []


def test_a_runtime_that_says_nothing_is_said_to():
    deployment = build_deployment(runtimes=["onnxruntime"])
    deployment["exported"]["runtimes"][0]["executed"] = {}
    assert costs(run(deployment=deployment, timings={})).notes == [
        "ONNX Runtime 1.32.0 did not say in what precision convolutions were computed"
    ]


def test_runtimes_that_computed_alike_are_one_sentence_and_others_name_their_methods():
    alike = [run(name, deployment=build_deployment(), timings={}) for name in ("baseline", "ema")]
    (sentence,) = costs(*alike).notes
    assert sentence.startswith("ONNX Runtime 1.32.0 and OpenVINO 2026.4.1 computed all 94 ")
    assert sentence.endswith("not what is computed in")
    eight = build_deployment(executed={"int8": 94})
    found = costs(*alike, run("freeze", deployment=eight, timings={})).notes
    assert [note[note.rindex("in ") :] for note in found] == ["in (baseline, ema)", "in (freeze)"]


def test_precisions_are_as_short_as_they_can_be():
    assert precisions({"float32": 94}) == "float32"
    mixed = {"float32": 14, "uint8, weights int8": 80}
    assert precisions(mixed) == "80 uint8 with int8 weights, 14 float32"
