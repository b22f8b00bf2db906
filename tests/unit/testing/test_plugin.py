"""The pytest plugin, in sessions of its own: plain, with workers, and without xdist."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

pytest_plugins = ["pytester"]

SCENARIO_TESTS = """
def test_coco(coco_scenario, validation_run):
    validation_run(coco_scenario)
"""

# Sessions below never train: a run is a stored summary, and each call leaves a line in a file. What
# is tested is who calls how often, not what a training gives; tests/validation does that.
STORED_RUNS = """
import os, time
from pathlib import Path
import pytest
from qatval.run import runner
from qatval.core.summary import write_summary
from qatval.testing import build_summary

CALLS = Path(__file__).parent / "calls.txt"

@pytest.fixture(scope="session")
def embedded_dataset(tmp_path_factory):
    from qatval.data.shapes import draw_dataset
    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root, train_images=2, val_images=1, size=64)
    return root

@pytest.fixture(autouse=True)
def stored_runs(monkeypatch):
    def run(config, progress):
        with CALLS.open("a") as stream:
            stream.write(",".join(m.name for m in config.methods) + f" {config.seed}\\n")
        time.sleep(0.3)
        for method in config.methods:
            changes = {"environment": {"torch": "0.1.0"}}  # for which no reference is recorded
            if message := os.environ.get("RUN_FAILS_WITH"):
                changes |= {"status": "incomplete", "error": {"message": message}}
            summary = build_summary(method.name, config.seed, changes=changes)
            write_summary(config.root_of(method.name), summary)
    monkeypatch.setattr(runner, "run", run)
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


@pytest.fixture
def stored(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(STORED_RUNS)
    pytester.makepyfile(EMBEDDED_TESTS)
    return pytester


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


@pytest.mark.parametrize("workers", [["-p", "no:xdist"], ["-n0"], ["-n2"]])
def test_missing_resources_skip_with_reason_and_remedy(
    workers: list[str], pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(SCENARIO_TESTS)
    result = pytester.runpytest_subprocess(*workers, "-m", "gpu", "-k", "yolo10n and seed0")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(
        [
            "*qatval: 3 scenarios could not run*",
            "3 x no COCO 2017 at datasets/coco2017/source-data (give its folder with --coco-root); "
            "no checkpoint models/yolo10/checkpoints/yolov10n.pt (qatval checkpoints fetch)",
        ]
    )


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


@pytest.mark.parametrize("workers", [["-p", "no:xdist"], ["-n0"], ["-n2"]])
def test_scenarios_of_a_training_share_it(workers: list[str], stored: pytest.Pytester) -> None:
    result = stored.runpytest_subprocess(*workers, "--junit-xml=junit.xml")
    result.assert_outcomes(passed=12)
    calls = sorted((stored.path / "calls.txt").read_text().splitlines())
    assert calls == ["baseline,ema,ema+qc 0", "baseline,ema,ema+qc 1"]
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
        for node in ElementTree.parse(stored.path / "junit.xml").iter("property")
    }
    assert ("qatval_status", "completed-success") in properties


def test_only_selected_methods_are_run(stored: pytest.Pytester) -> None:
    result = stored.runpytest_subprocess("-k", "ema-smoke-seed0")
    result.assert_outcomes(passed=2, deselected=10)
    assert (stored.path / "calls.txt").read_text() == "ema 0\n"


def test_run_root_keeps_the_runs(stored: pytest.Pytester) -> None:
    stored.runpytest_subprocess("-k", "seed0", "--run-root=kept")
    (session,) = (stored.path / "kept").iterdir()
    assert (session / "comparison.json").is_file()
    assert len(list(session.rglob("run_summary.json"))) == 3


def test_an_incomplete_run_fails_every_scenario_of_its_training(
    stored: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_FAILS_WITH", "the disk is full")
    result = stored.runpytest_subprocess("-k", "test_run and seed0")
    result.assert_outcomes(failed=3, deselected=9)
    result.stdout.fnmatch_lines(["*yolo10n-ema-smoke-seed0 is incomplete: the disk is full*"])
    assert len((stored.path / "calls.txt").read_text().splitlines()) == 1


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
