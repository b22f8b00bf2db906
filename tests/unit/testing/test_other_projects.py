"""Projects that share an environment with qatval and have not asked for its plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]

CLAIMED = ("--device", "--profile", "--seeds", "--run-root", "--coco-root", "--update-thresholds")

OPTIONS = """
def pytest_addoption(parser):
    for name in {names!r}:
        parser.addoption(name, default="theirs")

def test_theirs(pytestconfig):
    assert pytestconfig.getoption({names[0]!r}) == "theirs"
"""

UNTOUCHED = """
import os, sys

def test_untouched(pytestconfig):
    assert not [name for name in sys.modules if name.split(".")[0] == "qatval"]
    assert not {"OMP_NUM_THREADS", "GOMP_SPINCOUNT", "YOLO_CONFIG_DIR"} & set(os.environ)
    assert not any("GPU" in line or "gpu" in line for line in pytestconfig.getini("markers"))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of pytest and this qatval, with the entry points that pip would write."""
    site = tmp_path_factory.mktemp("site")
    (site / "qatval").symlink_to(str(files("qatval")))
    for name in ("pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        found = distribution(name)
        for part in {file.parts[0] for file in found.files or ()} - {".."}:
            (site / part).symlink_to(str(found.locate_file(part)))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    info = site / "qatval-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qatval\nVersion: 0.1.0\n")
    groups = {"console_scripts": project["scripts"], **project.get("entry-points", {})}
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for g, e in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    return site


def session(site: Path, folder: Path, *options: str) -> str:
    """Run a project's pytest in that environment and return what it printed."""
    ours = ("OMP_", "GOMP_", "YOLO_", "PYTEST_", "QATVAL_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pytest", *options],  # -S: nothing of this environment
        cwd=folder,
        env={**env, "PYTHONPATH": f"{site}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CLAIMED)
def test_their_options_are_their_own(name: str, site: Path, tmp_path: Path) -> None:
    source = OPTIONS.format(names=[name])
    (tmp_path / "conftest.py").write_text(source)
    (tmp_path / "test_theirs.py").write_text(source)
    assert "1 passed" in session(site, tmp_path)


def test_a_plugin_of_theirs_may_claim_them_all(site: Path, tmp_path: Path) -> None:
    source = OPTIONS.format(names=list(CLAIMED))
    (tmp_path / "benchmarking.py").write_text(source)
    (tmp_path / "test_theirs.py").write_text(source)
    assert "1 passed" in session(site, tmp_path, "-p", "benchmarking")


@pytest.mark.parametrize("options", [(), ("-p", "no:tmpdir"), ("--strict-markers", "-v")])
def test_nothing_of_theirs_is_touched(options: tuple[str, ...], site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(UNTOUCHED)
    printed = session(site, tmp_path, *options)
    assert "1 passed" in printed
    assert "qatval" not in printed.replace(str(tmp_path), "")
