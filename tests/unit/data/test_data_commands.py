"""`qatval dataset` and `qatval cache` as a user sees them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from qatval.cli import cache, dataset
from qatval.core.errors import UsageError


def run(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="qatval")
    actions = parser.add_subparsers()
    dataset.add_parser(actions)
    cache.add_parser(actions)
    args = parser.parse_args([str(word) for word in words])
    code: int = args.handler(args)
    return code


@pytest.fixture
def root(tmp_path: Path) -> Path:
    out = tmp_path / "shapes"
    assert run("dataset", "shapes", "--out", out, "--train-images", 6, "--val-images", 3) == 0
    return out


def test_draw_build_list_verify_remove(
    root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ("dataset", "build", "--profile", "smoke", "--coco-root", root)
    place = ("--cache-dir", cache_dir)
    assert run(*build, *place) == 0
    *_, printed = capsys.readouterr().out.splitlines()
    assert Path(printed).parent == cache_dir / "subsets"
    assert run(*build, "--verify", *place) == 0
    assert capsys.readouterr().out.endswith(f"{printed}\n")

    assert run("cache", "ls", *place) == 0
    listed = capsys.readouterr().out
    assert "3 entries" in listed
    assert re.search(r"shapes-[0-9a-f]{8} subset, 6 train / 3 val", listed)
    assert run("cache", "verify", *place) == 0
    assert capsys.readouterr().out.count("  ok\n") == 3

    assert run("cache", "rm", Path(printed).name[:12], *place) == 0
    assert not Path(printed).exists()
    assert run("cache", "rm", "--all", *place) == 0
    capsys.readouterr()
    assert run("cache", "ls", *place) == 0
    assert "0 entries" in capsys.readouterr().out


def test_drawing_prints_where(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dataset", "shapes", "--out", root, "--train-images", 6, "--val-images", 3) == 0
    assert capsys.readouterr().out == f"{root}\n"


def test_verify_removes_what_is_damaged(
    root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--cache-dir", cache_dir)
    run("dataset", "build", "--profile", "smoke", "--coco-root", root, *place)
    entry = Path(capsys.readouterr().out.splitlines()[-1])
    arrays = entry / "train.npz"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"?")
    index = next((cache_dir / "indexes").glob("*.npz"))
    index.write_bytes(index.read_bytes()[:-20])
    assert run("cache", "verify", *place) == 1
    assert capsys.readouterr().out.count("damaged, removed") == 2
    assert not entry.exists()
    assert not index.exists()
    run("dataset", "build", "--profile", "smoke", "--coco-root", root, *place)
    assert run("cache", "verify", *place) == 0


def test_a_cache_that_is_not_there_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cache", "ls", "--cache-dir", tmp_path / "none") == 0
    assert "0 entries" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("words", [[], ["--all", "abc"], ["abc"], [""]])
def test_rm_wants_to_know_what(root: Path, cache_dir: Path, words: list[str]) -> None:
    place = ("--cache-dir", cache_dir)
    run("dataset", "build", "--profile", "smoke", "--coco-root", root, *place)
    with pytest.raises(UsageError, match="qatval cache ls"):
        run("cache", "rm", *words, *place)


@pytest.mark.parametrize(
    "wrong", [["--size", "8"], ["--seed", "-1"], ["--train-images", "many"]], ids=" ".join
)
def test_wrong_options(tmp_path: Path, wrong: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run("dataset", "shapes", "--out", tmp_path / "out", *wrong)
    assert caught.value.code == 2
    assert f"error: argument {wrong[0]}: " in capsys.readouterr().err
