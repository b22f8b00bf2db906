"""Sessions with --launcher: which jobs there are, who waits for them, what is told of their end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import scipy.special  # noqa: F401  # pytester forgets what its sessions import; it loads but once
from tests.unit.testing.placed_runs import CALLS, STORED

from qatval.core import presets
from qatval.core.summary import write_summary
from qatval.run.study.plan import read_plan
from qatval.run.study.standing import entries
from qatval.testing import build_summary
from qatval.testing.scenarios import COCO, Scenario, missing_resources

pytest_plugins = ["pytester"]

OPT_IN = 'pytest_plugins = ["qatval.testing.plugin"]\n'
TESTS = """
def test_run(embedded_scenario, validation_run):
    run = validation_run(embedded_scenario)
    assert (run.method, run.seed) == (embedded_scenario.method, embedded_scenario.seed)

def test_again(embedded_scenario, validation_run):
    assert validation_run(embedded_scenario).completed
"""


@pytest.fixture(autouse=True)
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini(f"[pytest]\npythonpath = {Path(__file__).parent}")
    pytester.makeconftest(OPT_IN + "from placed_runs import pytest_configure, pytest_unconfigure")
    pytester.makepyfile(TESTS)
    return pytester


def store(session: pytest.Pytester, *methods: str, **more: Any) -> None:
    for method in methods or ("baseline", "ema", "ema+qc"):
        for seed in (0, 1):
            folder = session.path / STORED / f"{method}-{seed}"
            write_summary(folder, build_summary(method, seed, **more))


def placed(session: pytest.Pytester) -> list[str]:
    """Return the names of the jobs of all attempts that were placed, in order."""
    return (session.path / CALLS).read_text().splitlines()


def folder_of(session: pytest.Pytester) -> Path:
    (folder,) = (session.path / "kept").iterdir()
    return folder


def test_selected_scenarios_are_the_jobs_of_a_study(session: pytest.Pytester) -> None:
    store(session)
    result = session.runpytest("--launcher=local", "--run-root=kept")
    result.assert_outcomes(passed=12)
    assert placed(session) == [f"shapes-yolo10n-smoke/seed{seed}/baseline" for seed in (0, 1)]
    folder = folder_of(session)
    result.stdout.fnmatch_lines(
        [f"qatval: launcher=local; 'qatval study status {folder}' shows it", "report: *"]
    )
    result.stdout.no_fnmatch_line("*stopped*")
    plan = read_plan(folder)
    assert [job.methods for job in plan.jobs] == [("baseline", "ema", "ema+qc")] * 2
    assert [job.arguments["device"] for job in plan.jobs] == ["cpu", "cpu"]
    assert {entry.word for entry in entries(plan, folder)} == {"done"}


def test_trainings_are_jobs_of_their_own(session: pytest.Pytester) -> None:
    store(session, "ema", "ema+qc", "ptq", "fp32")
    options = ("-k", "seed0 and (-ema- or -ptq- or -fp32-)", "--with-controls", "--run-root=kept")
    session.runpytest("--launcher=local", *options).assert_outcomes(passed=6, deselected=34)
    jobs = read_plan(folder_of(session)).jobs
    assert [job.methods for job in jobs] == [("ema", "ptq"), ("fp32",)]


def test_a_failed_job_fails_every_test_of_its_scenarios(session: pytest.Pytester) -> None:
    store(session, error="the disk is full")
    result = session.runpytest("--launcher=local", "-k", "seed0")
    result.assert_outcomes(failed=6, deselected=6)
    result.stdout.fnmatch_lines(["yolo10n-ema-smoke-seed0: the disk is full (*/log.txt)"])
    assert len(placed(session)) == 1


def test_what_nobody_waits_for_is_stopped_and_goes_on(session: pytest.Pytester) -> None:
    store(session)
    options = ("--launcher=local", "--run-root=kept", "-p", "stop")
    (session.path / "stop.py").write_text(
        "from pathlib import Path\n"
        "def pytest_runtest_teardown(item):\n"
        "    if Path('stopping').exists():\n"
        "        item.session.shouldstop = 'enough'\n"
    )
    session.syspathinsert()
    (session.path / "stopping").touch()
    result = session.runpytest(*options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["qatval: 1 stopped"])
    (session.path / "stopping").unlink()
    session.runpytest(*options).assert_outcomes(passed=12)
    assert [name.split("/")[1] for name in placed(session)] == ["seed0", "seed1", "seed1"]
    folder_of(session)  # the same one


def test_collecting_plans_nothing(session: pytest.Pytester) -> None:
    session.runpytest("--launcher=local", "--collect-only", "--run-root=kept")
    assert not (session.path / "kept").exists()


def test_a_file_says_what_jobs_take(session: pytest.Pytester) -> None:
    store(session)
    (session.path / "cluster.toml").write_text("[resources]\nthreads = 3\ngpus = 1\nminutes = 5\n")
    session.runpytest("--launcher=local", "--launcher-config=cluster.toml", "--run-root=kept")
    resources = read_plan(folder_of(session)).resources
    assert (resources.threads, resources.minutes) == (3, 5)
    assert resources.gpus == 0  # nothing that was selected runs on one


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-p", "xdist", "-n2", "--launcher=local"], "-n and --launcher both run scenarios*"),
        (["--launcher=slurm"], "--launcher slurm needs --run-root DIR*"),
        (["--launcher-config=a.toml"], "--launcher-config is for --launcher*"),
        (["--launcher=local", "--device=1"], "--device 1: with --launcher give cpu or nothing*"),
        (["--launcher=local", "--launcher-config=a.toml"], "a.toml: resources.gpu: no such key*"),
        (["--launcher=local", "--launcher-config=b.toml"], "b.toml: cannot be read*"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[str], said: str, session: pytest.Pytester
) -> None:
    (session.path / "a.toml").write_text("[resources]\ngpu = 1\n")
    result = session.runpytest(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (line for line in result.errlines if line)
    assert line.startswith("ERROR: ")
    result.stderr.fnmatch_lines([f"ERROR: {said}"])


def test_a_cluster_has_gpus_that_this_machine_need_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "yolov10n.pt"
    checkpoint.touch()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").touch()
    variant = dataclasses.replace(presets.variant("yolo10n"), checkpoint=checkpoint)
    monkeypatch.setattr(presets, "variant", lambda _: variant)
    scenario = Scenario(COCO, "yolo10n", "ema", "smoke", 0)
    assert missing_resources(scenario, tmp_path, None, gpu=False) == []
