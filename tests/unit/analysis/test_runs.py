"""Finding, reading and judging finished runs."""

import pytest

from qatval.analysis.runs import collect
from qatval.testing import build_summary, loaded


def test_runs_are_found_at_any_depth(tmp_path, write_run):
    write_run("a/ema", method="ema")
    write_run("a/baseline", method="baseline")
    write_run("b")
    runs, unreadable = collect([tmp_path / "runs"])
    assert [run.root.name for run in runs] == ["baseline", "ema", "b"]
    assert unreadable == []


def test_a_run_root_a_summary_file_and_their_folder_are_one_run(tmp_path, write_run):
    root = write_run("one")
    runs, _ = collect([root, root / "run_summary.json", tmp_path])
    assert len(runs) == 1


def test_what_lies_inside_a_run_root_is_not_another_run(write_run):
    root = write_run("outer")
    write_run("outer/ultralytics/inner")
    assert [run.root for run in collect([root])[0]] == [root]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema_version": "1.0", "run_', "is not valid JSON"),
        ("accuracy: good", "is not valid JSON"),
        ("[1, 2]", "is not a run summary: Expected `object`, got `array`"),
        ('{"schema_version": "2.0"}', "has schema version 2.0, this qatval reads 1.x"),
        ('{"metrics": {"final_value": NaN}}', "is not valid JSON"),
        ("{}", "is not a run summary: Object missing required field `schema_version`"),
    ],
)
def test_an_unusable_summary_is_listed_with_the_reason(tmp_path, write_run, content, reason):
    write_run("good")
    bad = write_run("bad") / "run_summary.json"
    bad.write_text(content)
    runs, unreadable = collect([tmp_path])
    assert [run.root.name for run in runs] == ["good"]
    assert [item.path for item in unreadable] == [bad]
    assert reason in unreadable[0].reason
    assert "\n" not in unreadable[0].reason


def test_paths_without_a_run_are_listed(tmp_path):
    (tmp_path / "empty").mkdir()
    _, unreadable = collect([tmp_path / "empty", tmp_path / "absent"])
    assert unreadable[0].reason.endswith("holds no run_summary.json")
    assert unreadable[1].reason.endswith("no such file or folder")


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ((0.2, 0.4, 0.4), "stable"),
        ((0.2, 0.4, 0.2), "stable"),
        ((0.2, 0.4, 0.19), "collapsed"),
        ((0.0, 0.0), "degenerate"),
    ],
)
def test_the_outcome_follows_from_the_values(values, outcome):
    run = loaded(build_summary("baseline", values=values))
    assert run.outcome == outcome
    assert run.contradiction is None


def test_an_incomplete_run_has_no_verdict():
    run = loaded(build_summary(values=(0.5, 0.1), error="out of memory"))
    assert run.outcome == "incomplete"
    assert run.contradiction is None


@pytest.mark.parametrize(
    "changes",
    [
        {"stability": {"collapsed": True}},
        {"metrics": {"final_value": 0.01}},
    ],
    ids=["the record says so", "the values say so"],
)
def test_a_summary_that_contradicts_itself_is_taken_as_collapsed(changes):
    run = loaded(build_summary(changes=changes))
    assert run.outcome == "collapsed"
    assert "taken as collapsed" in (run.contradiction or "")


def test_a_run_without_a_final_value_keeps_no_share():
    run = loaded(build_summary(changes={"metrics": {"final_value": None}}))
    assert run.final is None
    assert run.kept is None
