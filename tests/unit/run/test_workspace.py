"""What an interrupted run keeps, and what it is held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qatval.core.errors import QatvalError
from qatval.run.workspace import Named, Workspace

RUNS = {"ema": Named("ema-1", "2026-01-01T00:00:00+00:00")}


def begun(root: Path, **settings: Any) -> Workspace:
    workspace = Workspace(root)
    workspace.begin(2, RUNS)
    workspace.hold(settings)
    return workspace


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    workspace = begun(tmp_path)
    again = Workspace(tmp_path)
    assert again.runs == RUNS
    assert [again.training(n) for n in (0, 1)] == [workspace.training(n) for n in (0, 1)]
    assert again.training(0) != again.training(1)
    assert not Workspace(tmp_path, anew=True).runs


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ({"seed": 0}, {"seed": 1}, "another seed: it was 0, is 1;"),
        ({"a": {"b": (1, 2)}}, {"a": {"b": (1, 3)}}, r"another a\.b: it was \[1,2\], is \[1,3\];"),
        ({"device": None}, {"device": "0"}, 'another device: it was null, is "0";'),
        ({"x": 1, "y": 1}, {"x": 2, "y": 2}, "another x:"),
        ({"x": "\n\x1b"}, {"x": ""}, r'was "\\n\\u001b"'),
    ],
)
def test_what_differs_is_refused(
    was: dict[str, Any], now: dict[str, Any], says: str, tmp_path: Path
) -> None:
    begun(tmp_path, **was)
    before = (tmp_path / ".training" / "configuration.json").read_bytes()
    with pytest.raises(QatvalError, match=says) as refused:
        Workspace(tmp_path).hold(now)
    assert "give the same command again" in str(refused.value)
    assert "--restart" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (tmp_path / ".training" / "configuration.json").read_bytes() == before


def test_what_is_the_same_is_held_and_added_to(tmp_path: Path) -> None:
    begun(tmp_path, rate=0.1, none=None, deep={"list": ("a",), "empty": {}})
    again = Workspace(tmp_path)
    again.hold({"rate": 0.1, "none": None, "deep": {"list": ["a"], "empty": {}}})
    again.hold({"threads": 2})
    with pytest.raises(QatvalError, match="another threads"):
        Workspace(tmp_path).hold({"threads": 3})


@pytest.mark.parametrize("kept", ["state.safetensors", "trajectory.json"])
def test_trained_is_what_would_have_to_be_trained_again(kept: str, tmp_path: Path) -> None:
    workspace = begun(tmp_path)
    workspace.training(1).mkdir()
    assert not workspace.trained
    (workspace.training(1) / kept).touch()
    assert Workspace(tmp_path).trained


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"trainings": ["../../x"]}', '{"runs": {"ema": 1}}', '{"trainings": "\xff"}'],
)
def test_a_configuration_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / ".training").mkdir()
    (tmp_path / ".training" / "configuration.json").write_text(content, "latin-1")
    with pytest.raises(QatvalError, match=r"configuration\.json cannot be read .*--restart"):
        Workspace(tmp_path)
    Workspace(tmp_path, anew=True).begin(1, RUNS)
    assert Workspace(tmp_path).runs == RUNS


def test_nothing_is_left(tmp_path: Path) -> None:
    for dead in (".training-x4z", ".training-0123"):
        (tmp_path / dead / "training").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    workspace = begun(tmp_path)
    workspace.training(0).mkdir()
    workspace.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    workspace.remove()


def test_beginning_anew_keeps_nothing_of_what_was(tmp_path: Path) -> None:
    workspace = begun(tmp_path, seed=0)
    old = workspace.training(0)
    old.mkdir()
    begun(tmp_path, seed=1)
    assert not old.exists()
    written = json.loads((tmp_path / ".training" / "configuration.json").read_text())
    assert written["settings"] == {"seed": 1}
