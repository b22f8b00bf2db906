"""Which runs may be compared with each other."""

from dataclasses import replace
from itertools import permutations

import pytest
from msgspec import UNSET

from qatval.analysis import conditions as of_runs
from qatval.analysis.comparability import (
    across_text,
    difference_text,
    differing_conditions,
    groups,
)
from qatval.analysis.conditions import ACROSS, comparable_identity, conditions, device_kind
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
    ("model.checkpoint_sha256", {"model": {"checkpoint_sha256": "0" * 64}}),
    ("training.device", {"training": {"device": "0"}}),
    ("training.overrides.lr0", {"training": {"overrides": {"lr0": 0.01}}}),
    ("training.overrides.mosaic", {"training": {"overrides": {"mosaic": 1.0}}}),
    ("environment.torch", {"environment": {"torch": "2.16.0"}}),
    ("environment.qatval", {"environment": {"qatval": "0.2.0"}}),
    ("method.ema.decay", {"method": {"ema": {"decay": 0.9}}}),
    ("method.ema.tau", {"method": {"ema": {"tau": 7.0}}}),
    ("method.ema.warm_up", {"method": {"ema": {"warm_up": 3}}}),  # which nobody knows yet
    ("method.qc.lr", {"method": {"qc": {"lr": 0.1}}}),
    ("method.qc.images", {"method": {"qc": {"images": 16}}}),
]


@pytest.mark.parametrize(("field", "changes"), DIFFERING, ids=str)
def test_a_condition_that_differs_is_named(field, changes):
    known = run()
    other = conditions(merged(known.recorded, changes))
    found = differing_conditions(conditions(known.recorded), other)
    assert field in [difference.field for difference in found]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": {"coco_root": "elsewhere", "dataset_yaml": "other.yaml"}},
        {"model": {"checkpoint": "elsewhere.pt"}},
        {"training": {"threads": 8, "fused": True, "tracked": True, "trajectory": "another"}},
        {"training": {"amp": True}},  # asked for, and without a meaning on a CPU
        {"training": {"batchnorm": "running"}},  # what runs did before it was recorded
        {"environment": {"cpu": "another", "torch": "2.15.0", "python": "3.13.0"}},
        {"method": {"ema": {"effective_decay": 0.5, "updates": 7}}},
        {"artifacts": {"run_root": "elsewhere"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_where_and_with_what_it_ran_is_no_condition(changes):
    assert conditions_of() == conditions_of(changes=changes)


def test_seeds_are_repetitions_of_one_experiment():
    assert differing_conditions(conditions_of(seed=0), conditions_of(seed=1)) == []


def test_one_seed_has_drawn_one_set_of_images():
    drawn = {"dataset": {"identity": {"train": {"image_ids_sha256": "another"}}}}
    runs = [run("baseline"), run("ema", changes=drawn), run("baseline", 1), run("ema", 1)]
    assert [[(r.method, r.seed) for r in members] for _, members in groups(runs)] == [
        [("ema", 0), ("baseline", 1), ("ema", 1)],
        [("baseline", 0), ("baseline", 1), ("ema", 1)],
    ]
    (one, _), (other, _) = groups(runs)
    (difference,) = differing_conditions(one, other)
    assert difference.field == "dataset.identity.train (seed 0).image_ids_sha256"


def test_what_only_one_method_has_is_no_difference():
    names = ("ema+qc", "ema+bn", "dampen+ema+qc", "baseline", "ptq")
    assert len(groups(run(name) for name in names)) == 1
    for one, other in permutations(names, 2):
        assert differing_conditions(conditions_of(one), conditions_of(other)) == []


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("cpu", "cpu"),
        ("0", "GPU"),
        ("3", "GPU"),
        ("0,1", "2 GPUs"),
        ("cuda:0", "GPU"),
        ("cuda", "GPU"),
        ("mps", "mps"),
        ("auto", None),
    ],
)
def test_devices_of_one_kind_are_alike(device, kind):
    assert device_kind({"training": {"device": device}}) == kind


def test_amp_is_a_condition_where_it_means_something():
    one, other = (
        conditions_of(changes={"training": {"device": "0", "amp": amp}}) for amp in (True, False)
    )
    assert [d.field for d in differing_conditions(one, other)] == ["training.amp"]


def test_an_untrained_model_has_no_schedule_to_differ_in():
    changed = {"training": {"overrides": {"lr0": 0.5}, "amp": False}}
    assert differing_conditions(conditions_of("ema"), conditions_of("ptq", changes=changed)) == []


def test_builds_of_one_version_for_several_devices_are_alike():
    built = {"environment": {"torch": "2.15.0+cu128"}}
    assert differing_conditions(conditions_of(), conditions_of(changes=built)) == []


def slower(name, seed=0):
    return run(name, seed, changes={"run_id": f"slow {name}", "method": {"ema": {"decay": 0.9}}})


def test_a_method_without_the_part_stands_beside_each_of_its_settings():
    runs = [run("baseline"), run("ema"), slower("ema"), run("ema+qc"), slower("ema+qc")]
    assert [[r.run_id for r in members] for _, members in groups(runs)] == [
        ["yolo10n-baseline-smoke-seed0", "yolo10n-ema-smoke-seed0", "yolo10n-ema+qc-smoke-seed0"],
        ["yolo10n-baseline-smoke-seed0", "slow ema", "slow ema+qc"],
    ]
    (one, _), (other, _) = groups(runs)
    assert [difference_text(d) for d in differing_conditions(one, other)] == [
        "method.ema.decay (0.948 / 0.9)"
    ]


def test_a_float_control_of_another_decay_controls_no_method():
    runs = [run("baseline"), run("ema"), run("fp32"), slower("fp32+ema")]
    assert named(groups(runs)) == [
        ["w4a16 baseline", "w4a16 ema", "fp32 fp32"],
        ["w4a16 baseline", "fp32 fp32", "fp32 fp32+ema"],
    ]


def test_a_float_control_of_another_schedule_is_a_group_of_its_own():
    faster = {"training": {"overrides": {"lr0": 0.5}}}
    runs = [run("ema"), run("fp32", changes=faster)]
    assert named(groups(runs)) == [["w4a16 ema"], ["fp32 fp32"]]
    assert groups(runs)[1].conditions["quantization"]["mode"] == "fp32"


def test_an_incomplete_run_without_a_decay_yet_contradicts_none():
    early = {"method": {"ema": {"decay": None, "tau": None}}, "training": {"device": "auto"}}
    stopped = run("ema", seed=1, error="interrupted", changes=early)
    assert [m for _, m in groups([run("baseline"), run("ema"), stopped])] == [
        [run("baseline"), run("ema"), stopped]
    ]


def test_parts_of_one_kind_under_different_names_are_different_parts(monkeypatch):
    """A table in ``methods.toml`` with another decay is another method, and to be compared."""
    known = of_runs.method

    class Other:
        parts = (replace(known("ema").parts[0], name="slow"),)

    monkeypatch.setattr(of_runs, "method", lambda n: Other if n == "slow" else known(n))
    other = run("ema", changes={"method": {"variant": "slow", "ema": {"decay": 0.9}}})
    assert len(groups([run("ema"), other])) == 1


def test_machines_and_versions_differ_where_the_user_lets_them():
    elsewhere = {"training": {"device": "0", "amp": False}, "environment": {"torch": "2.16.0"}}
    runs = [run("ema"), run("baseline", changes=elsewhere)]
    assert (
        len(groups(runs)) == len(groups(runs, ["machine"])) == len(groups(runs, ["versions"])) == 2
    )
    assert len(groups(runs, ACROSS)) == 1
    assert across_text(runs, ["machine"]) == "; across machines (GPU, cpu)"
    assert across_text(runs, ["versions"]) == "; across versions (torch 2.15.0, 2.16.0)"
    assert across_text(runs[:1], ACROSS) == across_text(runs, ()) == ""


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
