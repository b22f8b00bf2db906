"""What presets name is found from any folder, in the checkout or below the current one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qatval.core import checkout as module
from qatval.core.checkout import checkout, located
from qatval.core.presets import variant

REPOSITORY = Path(__file__).parents[3]
EMBEDDED = Path("models/shapes/yolo10n.safetensors")


def test_these_tests_run_from_a_checkout() -> None:
    assert checkout() == REPOSITORY


@pytest.mark.parametrize("folder", ["/", "tests/unit", "elsewhere"])
def test_a_preset_is_found_from_any_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path if folder == "elsewhere" else REPOSITORY / folder
    monkeypatch.chdir(start)
    assert variant("yolo10n").embedded_checkpoint == REPOSITORY / EMBEDDED
    assert variant("yolo10n").checkpoint.is_relative_to(REPOSITORY)


def test_in_the_root_paths_stay_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert variant("yolo10n").embedded_checkpoint == EMBEDDED


def test_what_lies_below_the_current_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    EMBEDDED.parent.mkdir(parents=True)
    EMBEDDED.touch()
    assert variant("yolo10n").embedded_checkpoint == EMBEDDED


def test_without_a_checkout_paths_stay_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert located(EMBEDDED) == EMBEDDED
