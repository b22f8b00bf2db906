"""What a study takes: by its own jobs, by the last one measured, or not known and said so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from qatval.core.summary import load_summary, write_summary
from qatval.run.study import estimate as module
from qatval.run.study.engines import Resources
from qatval.run.study.estimate import Estimate, estimate, remember, remembered
from qatval.run.study.matrix import EMBEDDED, Precision, Schedule, Study
from qatval.run.study.plan import Job, Plan
from qatval.run.study.planning import planned
from qatval.testing import build_summary

KILOBYTES = 400


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(module, "user_folder", lambda _: folder)
    monkeypatch.setattr(module, "machine", lambda: {"cpu": "a processor"})
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(study(), tmp_path / "study")


def study(**changes: Any) -> Study:
    whole = {
        "variants": ("yolo10n",),
        "methods": ("baseline", "ema", "dampen"),
        "seeds": (0, 1),
        "dataset": EMBEDDED,
        "profile": "smoke",
        "quantizations": {"w4": Precision()},
        "resources": {"threads": 2},
    }
    return Study(**{**whole, **changes})


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., Path]:
    """Finish a job: 256 images and 6 epochs, trained in 0.1 s each, 20 s of all else."""

    def finished(job: Job, image_s: float = 0.1, **changes: Any) -> Path:
        out = tmp_path / "study"
        training = image_s * 256 * 6
        for number, (name, root) in enumerate(job.run_roots(out).items(), 1):
            rest = 20.0 * number / len(job.methods)
            took = {"training": training, "baseline": 1.0, "total": training + rest}
            write_summary(root, build_summary(name, job.seed, changes={"timings": took, **changes}))
            (root / "weights").write_bytes(bytes(KILOBYTES * 1024))
        return job.run_root(out)

    return finished


def said(found: Estimate) -> str:
    return "\n".join(found.lines())


def test_nothing_is_known_before_anything_was_measured(plan: Plan, tmp_path: Path) -> None:
    assert estimate(plan, tmp_path / "study").lines() == [
        "4 jobs, 6 runs; 0 done, 4 to run",
        "not measured yet: yolo10n at 128 px on a CPU; the first job that is done tells",
    ]


def test_jobs_that_are_done_tell_of_those_that_are_not(
    plan: Plan, tmp_path: Path, finish: Callable[..., Path]
) -> None:
    finish(plan.jobs[0])
    found = estimate(plan, tmp_path / "study")
    assert found.left == 3
    # two jobs of one run, one of two, at 10 s a run and 153.6 s a training
    assert found.seconds == pytest.approx((500.8, 500.8))
    assert found.more == pytest.approx(4 * found.used / 2, rel=0.01)
    assert found.used >= 2 * KILOBYTES * 1024
    assert "about 8 min 21 s, by 1 job of this study" in said(found)
    finish(plan.jobs[1], image_s=0.2)
    found = estimate(plan, tmp_path / "study")
    assert found.seconds == pytest.approx((2 * 153.6 + 30, 2 * 307.2 + 60))
    assert "by 2 jobs of this study" in said(found)


def test_jobs_side_by_side_share_the_time(
    plan: Plan, tmp_path: Path, finish: Callable[..., Path]
) -> None:
    finish(plan.jobs[0])
    alone, two, many = (estimate(plan, tmp_path / "study", n) for n in (1, 2, 50))
    assert two.seconds[0] == pytest.approx(alone.seconds[0] / 2)
    assert many.seconds[0] == pytest.approx(153.6 + 20)  # the longest
    assert "2 side by side" in said(two)


def test_a_finished_study_takes_nothing(
    plan: Plan, tmp_path: Path, finish: Callable[..., Path]
) -> None:
    for job in plan.jobs:
        finish(job)
    (line,) = estimate(plan, tmp_path / "study").lines()
    assert line.startswith("4 jobs, 6 runs; all are done, on ")


def test_training_goes_with_images_and_epochs(tmp_path: Path, finish: Callable[..., Path]) -> None:
    longer = {"long": Schedule(epochs=60), "all": Schedule(profile="full")}
    first = planned(study(seeds=(0,)), tmp_path / "study").jobs[0]
    finish(first)
    plan = planned(
        study(methods=("baseline",), seeds=(0,), trainings={"smoke": Schedule(), **longer}),
        tmp_path / "study",
    )
    by_name = {job.training: Plan("", "", plan.resources, (first, job)) for job in plan.jobs}
    long, every = (estimate(by_name[name], tmp_path / "study").seconds[0] for name in longer)
    assert long == pytest.approx(0.1 * 256 * 60 + 10)
    assert every == pytest.approx(0.1 * 512 * 40 + 10)


def test_the_last_job_on_such_a_machine_tells_of_a_new_study(
    plan: Plan, tmp_path: Path, finish: Callable[..., Path]
) -> None:
    job = plan.jobs[0]
    folder = finish(job)
    summaries = [load_summary(root) for root in job.run_roots(tmp_path / "study").values()]
    remember(job, summaries, folder)
    found = estimate(plan, tmp_path / "another")
    assert found.seconds == pytest.approx((4 * 153.6 + 60,) * 2)
    assert "by one job of 2026-03-01 on a processor with 2 threads" in said(found)
    assert found.left == 4


@pytest.mark.parametrize(
    "changes",
    [{"cpu": "another"}, {"gpu": "a GPU"}, {"imgsz": 640}, {"variant": "yolo10s"}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_machine_or_model_tells_nothing(
    changes: dict[str, Any], plan: Plan, tmp_path: Path, finish: Callable[..., Path]
) -> None:
    where = {
        "cpu": "environment",
        "gpu": "environment",
        "imgsz": "model",
        "variant": "model",
    }
    nested = {where[name]: {name: value} for name, value in changes.items()}
    job = plan.jobs[0]
    folder = finish(job, **nested)
    summaries = [load_summary(root) for root in job.run_roots(tmp_path / "study").values()]
    remember(job, summaries, folder)
    assert len(remembered()) == 1
    assert "not measured yet" in said(estimate(plan, tmp_path / "another"))


def test_a_gpu_is_told_of_by_the_last_one(tmp_path: Path, finish: Callable[..., Path]) -> None:
    plan = planned(study(resources={"gpus": 1, "threads": 1}), tmp_path / "study")
    job = plan.jobs[0]
    for day, gpu in (("02", "GPU B"), ("01", "GPU A")):
        at = {"created_at": f"2026-03-{day}T12:00:00+00:00"}
        folder = finish(job, environment={"gpu": gpu}, **at)
        summaries = [load_summary(root) for root in job.run_roots(tmp_path / "study").values()]
        remember(job, summaries, folder)
    assert "one job of 2026-03-02 on GPU B" in said(estimate(plan, tmp_path / "another"))


def test_as_many_threads_tell_best(plan: Plan, tmp_path: Path, finish: Callable[..., Path]) -> None:
    job = plan.jobs[0]
    for day, threads in (("01", 2), ("02", 3)):
        at = {"created_at": f"2026-03-{day}T12:00:00+00:00"}
        folder = finish(job, training={"threads": threads}, **at)
        summaries = [load_summary(root) for root in job.run_roots(tmp_path / "study").values()]
        remember(job, summaries, folder)
    another = tmp_path / "another"
    assert "of 2026-03-01 on a processor with 2 threads" in said(estimate(plan, another))
    unlike = structs.replace(plan, resources=Resources(threads=1))
    assert "of 2026-03-02 on a processor with 3 threads" in said(estimate(unlike, another))


def test_one_measurement_of_a_kind_is_kept(
    plan: Plan, tmp_path: Path, finish: Callable[..., Path]
) -> None:
    job = plan.jobs[0]
    for image_s in (0.1, 0.3):
        folder = finish(job, image_s)
        summaries = [load_summary(root) for root in job.run_roots(tmp_path / "study").values()]
        remember(job, summaries, folder)
    assert [round(one.image_s or 0, 3) for one in remembered()] == [0.3]


def test_a_job_is_never_lost_over_its_measurement(
    plan: Plan, tmp_path: Path, finish: Callable[..., Path], cache: Path
) -> None:
    job = plan.jobs[0]
    folder = finish(job)
    summaries = [load_summary(root) for root in job.run_roots(tmp_path / "study").values()]
    cache.mkdir()
    (cache / module.RECORD_NAME).write_text("{")
    assert remembered() == []
    remember(job, summaries, folder)
    assert len(remembered()) == 1
    (cache / module.RECORD_NAME).unlink()
    (cache / module.RECORD_NAME).mkdir()
    remember(job, summaries, folder)
    assert remembered() == []


def test_a_job_that_trains_nothing_takes_no_training(
    tmp_path: Path, finish: Callable[..., Path]
) -> None:
    out = tmp_path / "study"
    finish(planned(study(seeds=(0,)), out).jobs[0])
    first = planned(study(methods=("baseline", "ema"), seeds=(0,)), out)
    (untrained,) = planned(study(methods=("ptq",), seeds=(0,)), out).jobs
    both = structs.replace(first, jobs=(*first.jobs, untrained))
    assert estimate(both, out).seconds == pytest.approx((10, 10))


def test_such_a_job_does_not_take_the_place_of_one_that_trained(
    plan: Plan, tmp_path: Path, finish: Callable[..., Path]
) -> None:
    job = plan.jobs[0]
    for image_s in (0.1, 0.0):
        folder = finish(job, image_s)
        summaries = [load_summary(root) for root in job.run_roots(tmp_path / "study").values()]
        remember(job, summaries, folder)
    assert [one.image_s for one in remembered()] == [pytest.approx(0.1)]


def test_too_little_disk_is_said(plan: Plan, tmp_path: Path, finish: Callable[..., Path]) -> None:
    finish(plan.jobs[0])
    found = estimate(plan, tmp_path / "study")
    assert "too little" not in said(replace(found, free=found.more))
    assert "too little" in said(replace(found, free=found.more - 1))
