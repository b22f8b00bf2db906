"""From a study to jobs: each method once, what is recorded stays, a changed setting is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from qatval.core.errors import QatvalError
from qatval.data.shapes import read_manifest
from qatval.quant.methods import method
from qatval.run.study import planning
from qatval.run.study.file import load_study
from qatval.run.study.matrix import EMBEDDED, Precision, Schedule, Study
from qatval.run.study.plan import Job, Plan, read_plan, write_plan
from qatval.run.study.planning import planned

METHODS = ("baseline", "ema", "ema+qc", "ptq", "fp32", "fp32+ema", "dampen", "ptq+shift")
PRECISIONS = {
    "w4": Precision(),
    "w3": Precision(weight_bits=3),
    "paper": Precision(quantization="paper"),
}

Make = Callable[..., Study]


@pytest.fixture
def make() -> Make:
    def made(**changes: Any) -> Study:
        whole = {
            "source": "study.toml",
            "variants": ("yolo10n",),
            "methods": ("baseline", "ema", "ema+qc"),
            "seeds": (0, 1),
            "dataset": EMBEDDED,
            "profile": "smoke",
            "quantizations": {"w4": Precision()},
        }
        return Study(**{**whole, **changes})

    return made


def shown(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {job.name: job.methods for job in plan.jobs}


def record(study: Study, out: Path) -> Plan:
    plan = planned(study, out)
    write_plan(plan, out)
    return plan


def test_methods_share_trainings_and_the_untrained_ride_along(make: Make, tmp_path: Path) -> None:
    study = make(methods=("ptq", "baseline", "fp32", "ema", "dampen"), seeds=(7,))
    assert shown(planned(study, tmp_path)) == {
        "yolo10n-smoke-w4/seed7/ptq": ("ptq", "baseline", "ema"),
        "yolo10n-smoke-w4/seed7/fp32": ("fp32",),
        "yolo10n-smoke-w4/seed7/dampen": ("dampen",),
    }


def test_methods_that_train_nothing_are_a_job_as_well(make: Make, tmp_path: Path) -> None:
    plan = planned(make(methods=("ptq", "ptq+shift"), seeds=(0,)), tmp_path)
    assert shown(plan) == {"yolo10n-smoke-w4/seed0/ptq": ("ptq", "ptq+shift")}


def test_methods_in_fp32_run_once_for_all_quantizations(make: Make, tmp_path: Path) -> None:
    plan = planned(
        make(methods=("baseline", "fp32"), seeds=(0,), quantizations=PRECISIONS), tmp_path
    )
    assert [job.name for job in plan.jobs if job.methods == ("fp32",)] == [
        "yolo10n-smoke-w4/seed0/fp32"
    ]
    assert len(plan.jobs) == 4


def test_all_of_a_seed_comes_before_all_of_the_next(make: Make, tmp_path: Path) -> None:
    plan = planned(make(methods=("baseline", "fp32"), seeds=(3, 1)), tmp_path)
    assert [job.seed for job in plan.jobs] == [3, 3, 1, 1]


def test_a_training_narrows_the_study(make: Make, tmp_path: Path) -> None:
    constant = Schedule(
        methods=("ema",), seeds=(1,), quantizations=("w3",), overrides={"lrf": 1.0}, epochs=2
    )
    study = make(trainings={"decayed": Schedule(), "constant": constant}, quantizations=PRECISIONS)
    (job,) = [job for job in planned(study, tmp_path).jobs if job.training == "constant"]
    assert job.name == "yolo10n-constant-w3/seed1/ema"
    config = job.config(tmp_path)
    assert config.profile.name == "smoke-constant"
    assert config.profile.overrides["lrf"] == 1.0
    assert config.profile.overrides["optimizer"] == "AdamW"
    assert config.profile.epochs == 2
    assert config.quantization.weight_bit_width == 3


def test_a_job_is_configured_before_its_data_are_drawn(make: Make, tmp_path: Path) -> None:
    (job,) = planned(make(seeds=(5,)), tmp_path).jobs
    config = job.config(tmp_path, tmp_path / "cache")
    assert config.profile.dataset == "shapes"
    assert config.coco_root == tmp_path / "shapes"
    assert config.run_root == tmp_path / "runs" / "yolo10n-smoke-w4" / "seed5" / "baseline"
    assert config.seed == 5
    assert config.primary == ("ema+qc", "baseline")
    assert list(tmp_path.iterdir()) == []


def test_the_dataset_is_drawn_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qatval.data import shapes

    drawn, real = [], shapes._draw_split
    monkeypatch.setattr(
        shapes,
        "_draw_split",
        lambda folder, split, count, *more: (drawn.append(split), real(folder, split, 2, *more)),
    )
    (job,) = planned(make(seeds=(5,)), tmp_path).jobs
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: job.draw(tmp_path), range(4)))
    assert sorted(drawn) == ["train", "val"]
    assert read_manifest(tmp_path / "shapes")


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "0"), (1, "0"), (2.0, "0,1")])
def test_the_device_is_what_a_job_has(gpus: float, device: str, make: Make, tmp_path: Path) -> None:
    plan = planned(make(resources={"gpus": gpus}), tmp_path)
    assert plan.jobs[0].config(tmp_path).device == device


def test_threads_are_decided_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "available_cores", lambda: 8)
    assert planned(make(), tmp_path).resources.threads == 4
    assert planned(make(seeds=tuple(range(20))), tmp_path, places=2).resources.threads == 4
    assert planned(make(seeds=tuple(range(20))), tmp_path).resources.threads == 1
    assert planned(make(resources={"threads": 3}), tmp_path).resources.threads == 3
    record(make(), tmp_path)
    monkeypatch.setattr(planning, "available_cores", lambda: 64)
    assert planned(make(), tmp_path).resources.threads == 4
    with pytest.raises(QatvalError, match=r"resources\.threads: it was 4, is 3"):
        planned(make(resources={"threads": 3}), tmp_path)


def test_the_same_study_again_is_the_same_plan(make: Make, tmp_path: Path) -> None:
    study = make(methods=METHODS, quantizations=PRECISIONS)
    plan = record(study, tmp_path)
    before = (tmp_path / "study.json").read_bytes()
    assert record(study, tmp_path) == plan == read_plan(tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before


def test_a_study_is_as_old_as_its_first_plan(make: Make, tmp_path: Path) -> None:
    old = replace(planned(make(), tmp_path), created_at="2026-01-01T00:00:00+00:00")
    write_plan(old, tmp_path)
    assert record(make(seeds=(0, 1, 2)), tmp_path).created_at == old.created_at


def test_a_new_method_gets_a_training_of_its_own(make: Make, tmp_path: Path) -> None:
    record(make(methods=("baseline",), seeds=(0,)), tmp_path)
    plan = record(make(methods=("ema", "baseline", "ptq"), seeds=(0,)), tmp_path)
    assert shown(plan) == {
        "yolo10n-smoke-w4/seed0/baseline": ("baseline",),
        "yolo10n-smoke-w4/seed0/ema": ("ema", "ptq"),
    }
    assert len(read_plan(tmp_path).jobs) == 2


def test_what_is_not_asked_for_any_more_stays_recorded(make: Make, tmp_path: Path) -> None:
    record(make(), tmp_path)
    plan = record(make(seeds=(1, 2)), tmp_path)
    assert [job.seed for job in plan.jobs] == [1, 2]
    assert [job.seed for job in read_plan(tmp_path).jobs] == [0, 1, 2]
    assert [job.seed for job in record(make(seeds=(0,)), tmp_path).jobs] == [0]


def test_fp32_stays_where_it_is_recorded(make: Make, tmp_path: Path) -> None:
    both = ("baseline", "fp32")
    one = {"w4": PRECISIONS["w4"]}
    record(make(methods=both, seeds=(0,), quantizations=one), tmp_path)
    other = {"w3": PRECISIONS["w3"]}
    plan = record(make(methods=both, seeds=(0,), quantizations=other), tmp_path)
    assert list(shown(plan)) == ["yolo10n-smoke-w4/seed0/fp32", "yolo10n-smoke-w3/seed0/baseline"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"quantizations": {"w4": Precision(weight_bits=3)}},
            "quantizations.w4.weight_bits: it was not given, is 3 in OUT; give another --out, or "
            "quantizations.w4 another name",
        ),
        (
            {"quantizations": {"w4": Precision(quantization="paper")}},
            "quantizations.w4.quantization: it was w4a16, is paper",
        ),
        (
            {"trainings": {"smoke": Schedule(epochs=2)}},
            "trainings.smoke.epochs: it was not given, is 2 in OUT; give another --out, or "
            "trainings.smoke another name",
        ),
        (
            {"trainings": {"smoke": Schedule(overrides={"lrf": 1.0})}},
            "trainings.smoke.overrides.lrf: it was not given, is 1.0",
        ),
        ({"primary": ("ema", "baseline")}, "primary: it was"),
        ({"margin": 0.01}, "margin: it was not given, is 0.01 in OUT; give another --out"),
        ({"dataset": "COCO"}, "dataset: it was not given, is COCO"),
    ],
)
def test_a_changed_setting_is_refused(
    changes: dict[str, Any], said: str, make: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record(make(), out)
    before = (out / "study.json").read_bytes()
    if "dataset" in changes:
        changes = {"dataset": str(coco(tmp_path))}
        said = said.replace("COCO", changes["dataset"])
    said = said.replace("OUT", str(out))
    with pytest.raises(QatvalError, match=re.escape(f"study.toml: {said}")):
        planned(make(seeds=(0, 1, 2), **changes), out)
    assert (out / "study.json").read_bytes() == before


def coco(folder: Path) -> Path:
    root = folder / "coco"
    for name in ("annotations", "train2017", "val2017"):
        (root / name).mkdir(parents=True)
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2017.json").write_text("{}")
    return root


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "/nowhere"}, "dataset: /nowhere is no folder"),
        ({"variants": ("yolo10s",)}, "yolo10s-smoke-w4: yolo10s has no embedded checkpoint"),
        (
            {"trainings": {"a": Schedule(checkpoint="/nowhere.pt")}},
            "yolo10n-a-w4: checkpoint /nowhere.pt not found",
        ),
        (
            {
                "variants": ("yolo10m",),
                "trainings": {"a": Schedule(checkpoint="/nowhere.pt")},
            },
            "yolo10m-a-w4: yolo10m is behind the stage gate",
        ),
        ({"profile": "medium"}, "yolo10n-medium-w4: unknown profile 'medium'"),
        ({"quantizations": {"a": Precision(quantization="w5")}}, "unknown quantization 'w5'"),
        (
            {"quantizations": {"a": Precision(scaling="statistics", start_scale="mse")}},
            "yolo10n-smoke-a: scales from statistics",
        ),
        (
            {
                "quantizations": {"a": Precision(scaling="statistics")},
                "methods": ("ema+qc", "baseline", "ptq+gptq"),
            },
            "yolo10n-smoke-a: GPTQ needs scales",
        ),
        ({"trainings": {"a": Schedule(imgsz=33)}}, "yolo10n-a-w4: --imgsz must be a multiple"),
        (
            {
                "trainings": {"a-b": Schedule(), "a": Schedule()},
                "quantizations": {"c": Precision(), "b-c": Precision()},
            },
            "two settings have the folder yolo10n-a-b-c",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_run(
    changes: dict[str, Any], said: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(QatvalError, match=re.escape(said)) as error:
        planned(make(**changes), tmp_path / "out")
    assert str(error.value).startswith("study.toml: ")
    assert not (tmp_path / "out").exists()


def test_averages_of_two_kinds_are_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from qatval.run import configuration

    def other(name: str) -> Any:
        found = method(name)
        if name == "ema":
            assert found.averaging is not None
            return found.replaced("ema", dataclasses.replace(found.averaging, max_tau=7.0))
        return found

    monkeypatch.setattr(configuration, "method", other)
    with pytest.raises(QatvalError, match="yolo10n-smoke-w4: methods with different averaging"):
        planned(make(), tmp_path)


def test_a_damaged_plan_is_told(make: Make, tmp_path: Path) -> None:
    record(make(), tmp_path)
    whole = (tmp_path / "study.json").read_text()
    for text in ("", whole[:50], "[]", whole.replace('"seed": 0', '"seed": "a"')):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(QatvalError, match=r"study\.json is no plan of a study"):
            planned(make(), tmp_path)
    with pytest.raises(QatvalError, match="holds no study"):
        read_plan(tmp_path / "elsewhere")


@st.composite
def studies(draw: Any) -> Study:
    def some(values: Any) -> Any:
        return draw(st.lists(st.sampled_from(list(values)), min_size=1, unique=True))

    names = some(PRECISIONS)
    return Study(
        variants=("yolo10n",),
        methods=tuple(some(METHODS)),
        seeds=tuple(some(range(3))),
        dataset=EMBEDDED,
        profile="smoke",
        quantizations={name: PRECISIONS[name] for name in names},
        trainings={name: Schedule() for name in some(("a", "b"))},
        resources={"threads": 1},
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(studies(), min_size=1, max_size=4))
def test_whatever_is_asked_for_in_turn_each_method_has_one_job(
    tmp_path_factory: pytest.TempPathFactory, asked: list[Study]
) -> None:
    """Recorded jobs never change, and a plan covers what it was asked for, nothing twice."""
    out = tmp_path_factory.mktemp("study")
    recorded: tuple[Job, ...] = ()
    for study in asked:
        plan = record(study, out)
        now = read_plan(out).jobs
        assert now[: len(recorded)] == recorded
        recorded = now
        places = [
            (job.training, job.quantization if method(name).quantized else None, job.seed, name)
            for job in recorded
            for name in job.methods
        ]
        assert len(set(places)) == len(places)
        assert len({job.name for job in recorded}) == len(recorded)
        roots = [root for job in recorded for root in job.run_roots(out).values()]
        assert not any(one != other and one in other.parents for one in roots for other in roots)
        covered = {
            (job.training, job.quantization if method(name).quantized else None, job.seed, name)
            for job in plan.jobs
            for name in job.methods
        }
        assert covered >= {
            (training, quantization if method(name).quantized else None, seed, name)
            for training in study.trainings
            for quantization in study.quantizations
            for seed in study.seeds
            for name in study.methods
        }
        for job in plan.jobs:
            assert len([t for t, _ in job.config(out).trainings() if t is not None]) <= 1


@pytest.mark.parametrize(
    ("name", "jobs"),
    [("study_embedded", 5 * (4 * 3 + 1 + 2 + 1)), ("study_photographs", 3 * (4 + 2 + 1))],
)
def test_the_studies_behind_the_documents(name: str, jobs: int, make: Make, tmp_path: Path) -> None:
    asked = load_study(Path(__file__).parents[4] / "benchmarks" / f"{name}.toml")
    plan = planned(replace(asked, dataset=EMBEDDED), tmp_path)
    trained = [job for job in plan.jobs if any(method(m).training for m in job.methods)]
    assert len(trained) == len(plan.jobs)
    assert len(plan.jobs) == jobs
