"""The pytest plugin, in sessions of its own: plain, with workers, and without xdist."""

from __future__ import annotations

import re
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import scipy.special  # noqa: F401  # pytester forgets what its sessions import; it loads but once
from tests.unit.testing.stored_runs import CALLS, STORED

from qatval.core.summary import write_summary
from qatval.testing import build_summary

pytest_plugins = ["pytester"]

# xdist's workers are processes of their own; everything else runs in this one.
WORKERS = [["-p", "no:xdist"], ["-n0"], ["-n2"]]

SCENARIO_TESTS = """
def test_coco(coco_scenario, validation_run):
    validation_run(coco_scenario)
"""

EMBEDDED_TESTS = """
def test_run(embedded_scenario, validation_run, threshold_failures):
    run = validation_run(embedded_scenario)
    assert run.method == embedded_scenario.method
    assert run.seed == embedded_scenario.seed
    assert threshold_failures(run) == []

def test_again(embedded_scenario, validation_run):
    assert validation_run(embedded_scenario).summary.status == "completed-success"
"""


OPT_IN = 'pytest_plugins = ["qatval.testing.plugin"]\n'


@pytest.fixture(autouse=True)
def light(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opt in, and load no plugin that the sessions do not use: it would be half a second each."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p xdist")
    pytester.makeconftest(OPT_IN)


@dataclass(frozen=True)
class Session:
    """A folder for sessions whose runs are stored summaries."""

    pytester: pytest.Pytester

    def store(self, **more: Any) -> None:
        """Store a run of each method and seed; keywords go to the builder."""
        folder = self.pytester.mkdir(STORED)
        for method in ("baseline", "ema", "ema+qc"):
            for seed in (0, 1):
                # No reference is recorded for this version.
                changes = {"environment": {"torch": "0.1.0"}}
                summary = build_summary(method, seed, changes=changes, **more)
                write_summary(folder / f"{method}-{seed}", summary)

    def run(self, *options: str) -> pytest.RunResult:
        return self.pytester.runpytest(*options)

    def calls(self) -> list[str]:
        """Return what the runner was called for, in the order of the calls."""
        return (self.pytester.path / CALLS).read_text().splitlines()


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    pytester.makeini(f"[pytest]\npythonpath = {Path(__file__).parent}")  # of workers too
    pytester.makeconftest(OPT_IN + "from stored_runs import embedded_dataset, stored_runs")
    pytester.makepyfile(EMBEDDED_TESTS)
    return Session(pytester)


def test_ids_and_markers(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SCENARIO_TESTS)
    result = pytester.runpytest(
        "--collect-only", "-q", "--strict-markers", "-m", "gpu and smoke", "-k", "yolo10n"
    )
    ids = [line for line in result.outlines if "::" in line]
    assert len(ids) == 6
    assert "test_ids_and_markers.py::test_coco[yolo10n-ema+qc-smoke-seed0]" in ids
    result = pytester.runpytest("--collect-only", "-q", "-m", "cpu and smoke")
    ids = [line.split("[")[1].rstrip("]") for line in result.outlines if "::" in line]
    methods = ("baseline", "ema", "ema+qc")
    assert ids == [f"yolo10n-{m}-smoke-seed{n}-photographs" for n in (0, 1) for m in methods]


def test_profile_and_seeds_choose_the_scenarios(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SCENARIO_TESTS)
    result = pytester.runpytest("--collect-only", "-q", "-m", "gpu", "--profile=short", "--seeds=7")
    ids = [line for line in result.outlines if "::" in line]
    assert len(ids) == 9
    assert all(re.search(r"-short-seed7\]$", line) for line in ids)


def test_controls_are_scenarios_where_they_are_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SCENARIO_TESTS)
    wanted = ("--collect-only", "-q", "-m", "gpu", "-k", "yolo10n and seed0")
    result = pytester.runpytest(*wanted, "--with-controls")
    ids = {line.split("[")[1].rstrip("]") for line in result.outlines if "::" in line}
    post_training = ("ptq", "ptq+shift", "ptq+gptq+shift")
    methods = (*post_training, "fp32", "fp32+ema", "fp32+ema+qc", "ema+bn")
    controls = {f"yolo10n-{m}-smoke-seed0" for m in methods}
    assert controls < ids
    plain = pytester.runpytest(*wanted)
    assert ids - controls == {
        line.split("[")[1].rstrip("]") for line in plain.outlines if "::" in line
    }


@pytest.mark.parametrize(
    "option", ["--profile=tiny", "--seeds=a", "--seeds=1,1", "--runs-per-gpu=0"]
)
def test_wrong_values_are_usage_errors(option: str, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*error: argument {option.split('=')[0]}*"])


def test_header_shows_the_settings(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--profile=short", "--coco-root=/data/coco")
    result.stdout.fnmatch_lines(["qatval: profile=short, seeds=0,1, coco-root=/data/coco"])


@pytest.mark.parametrize("workers", WORKERS)
def test_missing_resources_skip_with_reason_and_remedy(
    workers: list[str], pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(SCENARIO_TESTS)
    result = pytester.runpytest(*workers, "-m", "gpu", "-k", "yolo10n and seed0")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(
        [
            "*qatval: 3 scenarios could not run*",
            "3 x no COCO 2017 at *datasets/coco2017/source-data (give its folder with "
            "--coco-root); no checkpoint *models/yolo10/checkpoints/yolov10n.pt (qatval "
            "checkpoints fetch)",
        ]
    )


@pytest.mark.parametrize(
    "without", [["-p", "no:tmpdir"], ["-p", "no:xdist"], ["-p", "no:cacheprovider", "-n0"]]
)
def test_a_session_without_other_plugins(
    without: list[str], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(session.pytester.path))
    session.store()
    result = session.run(*without, "--strict-markers", "-k", "test_run and ema-smoke-seed0")
    result.assert_outcomes(passed=1, deselected=11)


def test_strict_resources_fail_instead(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SCENARIO_TESTS)
    result = pytester.runpytest("--strict-resources", "-m", "gpu", "-k", "yolo10n and seed0")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*cannot run: no COCO 2017 at*"])


def test_closed_gate_is_a_missing_resource(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SCENARIO_TESTS)
    result = pytester.runpytest("-k", "yolo10m and baseline and seed0")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*the stage gate for yolo10m is closed (give the runs*"])


@pytest.mark.parametrize("workers", WORKERS)
def test_scenarios_of_a_training_share_it(workers: list[str], session: Session) -> None:
    session.store()
    result = session.run(*workers, "--junit-xml=junit.xml")
    result.assert_outcomes(passed=12)
    assert sorted(session.calls()) == ["baseline,ema,ema+qc 0", "baseline,ema,ema+qc 1"]
    result.stdout.fnmatch_lines(
        [
            "*qatval: runs of this session*",
            "*ema+qc*",
            "report: *comparison.html",
            "*scenarios have no recorded reference and were judged by the rules alone*",
        ]
    )
    properties = {
        (node.get("name"), node.get("value"))
        for node in ElementTree.parse(session.pytester.path / "junit.xml").iter("property")
    }
    assert ("qatval_status", "completed-success") in properties


def test_only_selected_methods_are_run(session: Session) -> None:
    session.store()
    session.run("-k", "ema-smoke-seed0").assert_outcomes(passed=2, deselected=10)
    assert session.calls() == ["ema 0"]


def test_run_root_keeps_the_runs(session: Session) -> None:
    session.store()
    session.run("-k", "seed0", "--run-root=kept")
    (kept,) = (session.pytester.path / "kept").iterdir()
    assert (kept / "comparison.json").is_file()
    assert len(list(kept.rglob("run_summary.json"))) == 3


def test_an_incomplete_run_fails_every_scenario_of_its_training(session: Session) -> None:
    session.store(error="the disk is full")
    result = session.run("-k", "test_run and seed0")
    result.assert_outcomes(failed=3, deselected=9)
    result.stdout.fnmatch_lines(["*yolo10n-ema-smoke-seed0 is incomplete: the disk is full*"])
    assert len(session.calls()) == 1


@pytest.mark.parametrize(
    ("holds", "lacking"),
    [
        ((), "no dataset in COCO's layout in"),
        (("data/annotations/instances_val2017.json",), "no checkpoint in"),
    ],
)
def test_missing_photographs_skip_with_reason_and_remedy(
    holds: tuple[str, ...],
    lacking: str,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = pytester.mkdir("photographs")
    for name in holds:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    monkeypatch.setenv("QATVAL_REAL_DATA", str(folder))
    pytester.makepyfile(SCENARIO_TESTS)
    result = pytester.runpytest("-m", "cpu", "-k", "seed0")
    result.assert_outcomes(skipped=3, deselected=21)
    result.stdout.fnmatch_lines([f"3 x {lacking} {folder} (name a folder with photographs*"])


def test_a_session_that_was_interrupted_goes_on(session: Session) -> None:
    session.store()
    path = session.pytester.path
    session.pytester.makepyfile(
        test_z="""
        from pathlib import Path
        def test_stop():
            if Path("stop").exists():
                raise KeyboardInterrupt
        """
    )
    options = ("-p", "no:xdist", f"--run-root={path / 'kept'}", "--seeds=0")
    (path / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        session.run(*options)
    (interrupted,) = (path / "kept").iterdir()
    assert session.calls() == ["baseline,ema,ema+qc 0"]
    with pytest.raises(KeyboardInterrupt):
        session.run(*options, "-k", "seed0 or stop")  # another session's
    assert len(list((path / "kept").iterdir())) == 2
    assert len(session.calls()) == 2

    (path / "stop").unlink()
    session.run(*options).assert_outcomes(passed=7)
    assert len(session.calls()) == 2
    assert (interrupted / "comparison.json").exists()
    assert not list(interrupted.glob("session.json"))
    session.run(*options).assert_outcomes(passed=7)  # it came to its end: this is a new one
    assert len(list((path / "kept").iterdir())) == 3


def test_an_incomplete_run_is_tried_once_in_a_session(session: Session) -> None:
    session.store(error="killed")
    path = session.pytester.path
    options = ("-p", "no:xdist", f"--run-root={path / 'kept'}", "--seeds=0")
    session.run(*options).assert_outcomes(failed=6)
    assert session.calls() == ["baseline,ema,ema+qc 0"]  # once, whoever asks
