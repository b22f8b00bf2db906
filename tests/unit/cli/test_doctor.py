from __future__ import annotations

import argparse
import importlib
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
    # They lie in the repository's root, wherever the tests are started.
    monkeypatch.setattr(doctor, "_embedded_checkpoints", lambda: Finding("ok", ""))


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
