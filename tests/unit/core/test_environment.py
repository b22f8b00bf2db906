"""What a process settles about itself before it trains."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qatval.core import environment
from qatval.core.environment import available_cores, git_state, settings_folder, user_folder

MIB = 2**20
BLOCKS, TURNS = 8, 20
PAGES = BLOCKS * MIB // mmap.PAGESIZE
TAKEN = 256  # MiB
PROGRAM = Path(__file__).with_name("memory_process.py")


def process(*arguments: str, **environment: str) -> list[int]:
    """Run the program with this environment and return the numbers that it prints."""
    command = [sys.executable, PROGRAM, *arguments]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}  # the same qatval as here
    env = path | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def page_faults(**environment: str) -> int:
    """Return how many pages are mapped anew when blocks of 1 MiB are freed over and over."""
    (found,) = process("faults", str(BLOCKS), str(TURNS), **environment)
    return found


glibc = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


@glibc
def test_freed_memory_stays_with_the_process() -> None:
    assert page_faults() < PAGES // 4


@glibc
def test_what_the_user_has_settled_is_left_alone() -> None:
    # The user's threshold has malloc map and unmap each of the blocks.
    assert page_faults(MALLOC_MMAP_THRESHOLD_="65536") >= TURNS * PAGES


@glibc
def test_the_peak_of_memory_is_what_was_taken_and_not_what_is_left() -> None:
    # In a process of its own: this one has had more than that before.
    before, peak = process("peak", str(TAKEN))
    assert peak - before == pytest.approx(TAKEN, abs=8)


@pytest.mark.skipif(available_cores() < 2, reason="one core")
def test_ultralytics_does_not_take_the_cores_from_torch() -> None:
    program = "import qatval.train, torch; print(torch.get_num_threads())"
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1


UNKNOWN = {"commit": None, "branch": None, "dirty": None}


def repository(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@x", "-c", "init.defaultBranch=grün"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that takes the place of qatval's checkout."""
    if not shutil.which("git"):
        pytest.skip("no git")
    folder = tmp_path / "around" / "clone"
    folder.mkdir(parents=True)
    monkeypatch.setattr(environment, "checkout", lambda: folder)
    return folder


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_a_clone_is_known_in_any_locale(
    locale: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(checkout)
    monkeypatch.setenv("LC_ALL", locale)
    assert git_state()["branch"] == "grün"
    assert git_state()["dirty"] is False


def test_a_clone_without_git_is_not_taken_for_the_repository_around_it(checkout: Path) -> None:
    repository(checkout.parent)
    assert git_state() == UNKNOWN


def test_a_git_hook_does_not_lend_its_repository(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(repository(tmp_path / "other") / ".git"))
    assert git_state() == UNKNOWN


def test_a_machine_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(checkout)
    monkeypatch.setenv("PATH", "")
    assert git_state() == UNKNOWN


def test_an_installed_package_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "checkout", lambda: None)
    assert git_state() == UNKNOWN


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("YOLO_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("unresolved", ["raises", "leaves it"])
def test_no_home_folder(
    unresolved: str, no_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    def find(*_: object, **__: object) -> Path:
        if unresolved == "raises":
            raise RuntimeError("could not determine the home directory")
        return Path("~/.config/qatval")

    monkeypatch.setattr(platformdirs, "user_config_path", find)
    assert user_folder("config") is None
    assert settings_folder() == (None, "there is no home folder")


def test_a_home_that_cannot_be_written(
    no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder, refused = settings_folder()
    assert folder is not None
    assert refused
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "named"))
    assert settings_folder() == (tmp_path / "named", None)


HOMES = ("/proc/nowhere", "/dev/null", "-")


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the folder of Ultralytics' settings and the files in it, for each of the homes."""
    cwd = tmp_path_factory.mktemp("cwd")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO", "XDG", "MPL"))}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("homeless_process.py"), *HOMES],
        env={**env, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert list(cwd.iterdir()) == []  # no folder called "~"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(HOMES, lines, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
@pytest.mark.parametrize("home", HOMES)
def test_ultralytics_is_given_a_folder_that_can_be_written(
    home: str, settings_of: dict[str, list[str]]
) -> None:
    folder, *written = settings_of[home]
    assert written
    assert not Path(folder).exists()  # it was temporary
