"""Which runs may be compared with each other."""

import pytest
from msgspec import UNSET

from qatval.analysis.comparability import (
    comparable_identity,
    conditions,
    difference_text,
    differing_conditions,
    groups,
)
from qatval.analysis.runs import LoadedRun
from qatval.testing import build_summary, loaded, merged, reduced_to_required


def run(*args, **kwargs):
    return loaded(build_summary(*args, **kwargs))


def conditions_of(*args, **kwargs):
    return conditions(run(*args, **kwargs).recorded)


DIFFERING = [
    ("model.variant", {"model": {"variant": "yolo10s"}}),
    ("model.imgsz", {"model": {"imgsz": 160}}),
    ("quantization", {"quantization": {"scale": "per-tensor"}}),
    ("quantization", {"quantization": {"scaling": "statistics"}}),
    ("quantization", {"quantization": {"boundary_bit_width": 8}}),
    ("quantization", {"quantization": {"narrow_range": False}}),
    ("quantization.scaling", {"quantization": {"scaling": None}}),
    ("quantization.layers", {"quantization": {"coverage": {"layers": []}}}),
    ("quantization.layers", {"quantization": {"coverage": None}}),
    ("evaluation.max_det", {"evaluation": {"max_det": 100}}),
    ("evaluation", {"evaluation": None}),
    ("dataset.val_images", {"dataset": {"val_images": 64}}),
    (
        "dataset.identity.val.image_ids_sha256",
        {"dataset": {"identity": {"val": {"image_ids_sha256": "x"}}}},
    ),
    ("dataset.identity.annotations.val", {"dataset": {"identity": {"annotations": {"val": "x"}}}}),
    ("dataset.identity.train.images", {"dataset": {"identity": {"train": {"images": 9}}}}),
    ("dataset.identity", {"dataset": {"identity": None}}),
    ("training.epochs", {"training": {"epochs": 7}}),
    ("training.batchnorm", {"training": {"batchnorm": "anchored"}}),
]


@pytest.mark.parametrize(("field", "changes"), DIFFERING, ids=str)
def test_a_condition_that_differs_is_named(field, changes):
    found = differing_conditions(conditions_of(), conditions_of(changes=changes))
    assert field in [difference.field for difference in found]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": {"coco_root": "elsewhere", "dataset_yaml": "other.yaml"}},
        {"model": {"checkpoint": "elsewhere.pt"}},
        {"training": {"device": "0", "amp": True, "threads": 8}},
        {"training": {"batchnorm": "running"}},  # what runs did before it was recorded
        {"environment": {"torch": "2.16.0"}},
        {"artifacts": {"run_root": "elsewhere"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_where_and_with_what_it_ran_is_no_condition(changes):
    assert conditions_of() == conditions_of(changes=changes)


def test_seeds_and_methods_are_repetitions_of_one_experiment():
    assert conditions_of("ema", seed=0) == conditions_of("baseline", seed=1)


def test_a_list_of_the_users_own_keeps_its_digest():
    identity = {"train": {"rule": "list", "seed": None, "image_ids_sha256": "x"}}
    assert comparable_identity(identity) == identity


def test_old_summaries_are_comparable_with_their_like_only():
    old = [loaded(reduced_to_required(build_summary("ema", seed))) for seed in (0, 1)]
    new = run("ema", seed=2)
    assert [members for _, members in groups([*old, new])] == [old, [new]]


def test_the_largest_group_comes_first():
    small = run(changes={"model": {"imgsz": 160}})
    large = [run(seed=seed) for seed in (0, 1)]
    assert [members for _, members in groups([small, *large])] == [large, [small]]


def test_an_incomplete_run_joins_the_runs_it_does_not_contradict():
    early = {"dataset": {"identity": None, "train_images": None}, "evaluation": None}
    finished = run(seed=0)
    stopped = run(seed=1, error="interrupted", changes=early)
    other_size = run(seed=2, error="interrupted", changes={**early, "model": {"imgsz": 160}})
    assert [m for _, m in groups([stopped, finished, other_size])] == [
        [finished, stopped],
        [other_size],
    ]


def test_precisions_differ_in_one_line_however_many_layers_they_reach():
    (found,) = differing_conditions(conditions_of(), conditions_of(mode="w3a8"))
    assert difference_text(found) == (
        "quantization (w4a16 per-channel learned from max shifted / "
        "w3a8 per-channel learned from max shifted)"
    )


def test_layers_that_differ_alone_are_one_line_too():
    changes = {"quantization": {"coverage": {"layers": []}}}
    (found,) = differing_conditions(conditions_of(), conditions_of(changes=changes))
    assert difference_text(found) == (
        "quantization.layers (4 bit per-channel (model.0.conv and 3 more) / not recorded)"
    )


def test_a_setting_that_is_off_is_as_good_as_one_that_is_not_recorded():
    without = {"run_id": "older", "quantization": {"boundary_bit_width": UNSET}}
    older = run(seed=0, changes=without)
    newer = run(seed=1)
    assert [members for _, members in groups([older, newer])] == [[older, newer]]


def test_what_this_version_does_not_know_is_a_condition_too():
    known = run("ema")
    recorded = merged(known.recorded, {"quantization": {"rounding": "stochastic"}})
    unknown = LoadedRun(known.root, known.summary, recorded)
    assert [members for _, members in groups([known, unknown])] == [[known], [unknown]]


def named(found):
    return [[f"{r.mode} {r.method}" for r in members] for _, members in found]


def test_a_float_control_joins_every_precision_it_agrees_with_on_all_else():
    runs = [
        run("ema"),
        run("ema", mode="w3a16"),
        run("ema", mode="w3a16", scale="per-tensor"),
        run("ema", changes={"model": {"imgsz": 160}}),
        run("fp32+ema"),
    ]
    assert named(groups(runs)) == [
        ["w4a16 ema", "fp32 fp32+ema"],
        ["w3a16 ema", "fp32 fp32+ema"],
        ["w3a16 ema", "fp32 fp32+ema"],
        ["w4a16 ema"],
    ]


def test_float_controls_without_a_partner_are_a_group_of_their_own_and_the_last():
    larger = {"model": {"imgsz": 160}}
    runs = [run("fp32", seed, changes=larger) for seed in (0, 1)]
    assert named(groups([*runs, run("ema")])) == [["w4a16 ema"], ["fp32 fp32", "fp32 fp32"]]


def test_an_incomplete_float_control_joins_what_it_does_not_contradict():
    early = {"dataset": {"identity": None, "train_images": None}, "evaluation": None}
    stopped = run("fp32", seed=1, error="interrupted", changes=early)
    elsewhere = run("fp32", seed=2, error="interrupted", changes={**early, "model": {"imgsz": 160}})
    assert named(groups([run("ema"), stopped, elsewhere])) == [
        ["w4a16 ema", "fp32 fp32"],
        ["fp32 fp32"],
    ]


def test_the_untrained_model_is_comparable_with_what_is_trained_from_it():
    assert len(groups([run("ema"), run("ptq")])) == 1
