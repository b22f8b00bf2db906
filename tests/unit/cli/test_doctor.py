from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qatval.cli import doctor
from qatval.cli.doctor import Finding, examine


@pytest.fixture(autouse=True)
def no_heavy_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit tests examine what is cheap; torch and the GPU have checks of their own."""
    monkeypatch.setattr(doctor, "_NEEDED_MODULES", {"msgspec": "msgspec", "numpy": "numpy"})
    monkeypatch.setattr(doctor, "_gpu", lambda: Finding("optional", "none"))


def findings(tmp_path: Path) -> dict[str, Finding]:
    return dict(examine(tmp_path / "coco", tmp_path / "cache"))


def test_what_is_optional_does_not_stop_a_cpu_run(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert not [f for f in found.values() if f.level == "missing"]
    assert found["COCO"].level == "optional"
    assert "qatval dataset shapes" in found["COCO"].message
    assert found["numpy"].level == "ok"


def test_a_missing_piece_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"{name} is broken")

    monkeypatch.setattr(importlib, "import_module", refuse)
    found = findings(tmp_path)
    assert found["numpy"].level == "missing"
    assert "numpy is broken" in found["numpy"].message


def test_a_check_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Finding:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(doctor, "_gpu", fail)
    assert "driver too old" in findings(tmp_path)["GPU"].message


@pytest.mark.parametrize("missing", [0, 1])
def test_an_incomplete_dataset_is_noticed(tmp_path: Path, missing: int) -> None:
    from qatval.data.shapes import draw_dataset

    draw_dataset(tmp_path / "coco", train_images=3, val_images=2)
    for path in sorted((tmp_path / "coco" / "val2017").iterdir())[:missing]:
        path.unlink()
    found = findings(tmp_path)["COCO"]
    assert found.level == ("optional" if missing else "ok")
    assert ("1 of 2 images" if missing else "3 train and 2 val images") in found.message


def test_a_version_outside_the_tested_range_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    monkeypatch.setattr(doctor, "_tested_versions", lambda _: specifiers.SpecifierSet("<0.1"))
    assert "untested; tested: <0.1" in findings(tmp_path)["numpy"].message


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere/.cache"])
def test_a_cache_that_cannot_be_written_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = dict(examine(tmp_path / "coco", tmp_path / place))["cache"]
    assert found.level == "missing"
    assert "cannot be written" in found.message
    assert "--cache-dir" in found.message


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
def test_a_home_on_a_full_disk_is_told(
    full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(full, os.strerror(full))

    monkeypatch.delenv("YOLO_CONFIG_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "fsync", refuse)
    found = dict(examine(tmp_path / "coco"))
    assert found["cache"].level == "missing"
    assert found["settings"].level == "optional"  # a temporary folder takes its place
    assert all(os.strerror(full) in found[name].message for name in ("cache", "settings"))


def test_no_home_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QATVAL_CACHE_DIR", raising=False)
    monkeypatch.setattr("qatval.data.cache.user_folder", lambda kind: None)
    found = dict(examine(tmp_path / "coco"))["cache"]
    assert found.level == "missing"
    assert found.message.startswith("there is no home folder")


def test_an_encoding_without_umlauts_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert "PYTHONUTF8=1" in findings(tmp_path)["Python"].message


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(
        ["doctor", "--coco-root", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]
    )
    assert args.handler(args) == 0
    assert capsys.readouterr().out.endswith("A CPU run on the embedded data is possible.\n")
    monkeypatch.setattr(doctor, "_disk", lambda: Finding("missing", "full"))
    assert args.handler(args) == 1
    assert "NO  disk" in capsys.readouterr().out
