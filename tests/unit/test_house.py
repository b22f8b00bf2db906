"""The house rules: dependencies point one way, and the quick parts stay quick."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

PACKAGE = Path(str(files("qatval")))

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"


def wings() -> dict[str, set[str]]:
    """Return what each package may import, from the table in ARCHITECTURE.md."""
    rows = re.findall(r"^\| `([\w./]+)/` \|.*\| ([^|]*) \|$", ARCHITECTURE.read_text("utf-8"), re.M)
    return {name: set(re.findall(r"[\w./]+", allowed)) for name, allowed in rows}


WINGS = wings()


def wing_of(module: str) -> str:
    """Return the wing a module belongs to, e.g. ``"quant/methods"`` or ``"quant"``."""
    path = "/".join(module.split(".")[1:])
    return max((w for w in WINGS if f"{path}/".startswith(f"{w}/")), key=len, default="")


def imports(path: Path) -> set[str]:
    """Return every module of the package that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qatval"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("qatval")}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_the_table_names_every_package() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {wing.split("/")[0] for wing in WINGS} == packages
    assert len(packages) <= 10
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_package_imports_what_the_table_allows(path: Path) -> None:
    module = ".".join(("qatval", *path.relative_to(PACKAGE).with_suffix("").parts))
    own = wing_of(module.removesuffix(".__init__"))
    for imported in imports(path):
        other = wing_of(imported)
        allowed = {own, *WINGS.get(own, set())}
        assert not other or other in allowed, f"{module} imports {imported}"


def test_only_the_right_modules_know_the_libraries() -> None:
    owners = {
        "ultralytics": {"train"},
        "brevitas": {"quant"},
        "pycocotools": {"data"},
        "onnx": {"deploy"},
        "onnxruntime": {"deploy"},
        "openvino": {"deploy"},
        "pytest": {"testing"},
        "ray": {"run"},
        "submitit": {"run"},
        "rich": {"run"},
    }
    found: dict[str, set[str]] = {library: set() for library in owners}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for library in {name.split(".")[0] for name in names} & owners.keys():
                found[library].add(path.relative_to(PACKAGE).parts[0])
    assert found == owners


def test_no_module_holds_too_much() -> None:
    for path in MODULES:
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= 400, f"{path.relative_to(PACKAGE)} has {lines} lines: what is the second"


HEAVY = ("torch", "ultralytics", "brevitas", "cv2", "scipy", "jinja2")
LIGHT = (
    "core.presets",
    "core.summary",
    "core.trajectory",
    "quant.methods",
    "analysis.autopsies",
    "analysis.comparison",
    "analysis.gate",
    "analysis.falls",
    "analysis.foreign_curve",
    "analysis.thresholds",
    "run.runner",
    "run.configuration",
    "run.study.engines.ray",
    "run.study.engines.slurm",
    "run.study.controller",
    "run.study.engines.local",
    "run.study.estimate",
    "run.study.file",
    "run.study.job",
    "run.study.launching",
    "run.study.planning",
    "run.study.watching",
    "testing.launching",
    "testing.scenarios",
)


def loaded_by(*parts: str) -> list[set[str]]:
    """Return which heavy libraries each part of a program has loaded that none before it had."""
    report = f"print('loaded', *[m for m in {HEAVY!r} if m in sys.modules])"
    program = "\n".join(["import sys", *(f"{part}\n{report}" for part in parts)])
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    seen = [set(line.split()[1:]) for line in output.splitlines() if line.startswith("loaded")]
    assert len(seen) == len(parts)
    return [after - before for before, after in zip([set(), *seen], seen, strict=False)]


@pytest.fixture(scope="module")
def loaded_by_light() -> dict[str, set[str]]:
    """Return what each of the light modules loads, imported one after the other."""
    return dict(zip(LIGHT, loaded_by(*(f"import qatval.{name}" for name in LIGHT)), strict=True))


@pytest.mark.parametrize("module", LIGHT)
def test_choices_and_verdicts_load_nothing_heavy(
    module: str, loaded_by_light: dict[str, set[str]]
) -> None:
    assert loaded_by_light[module] == set()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "from qatval.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    )
    assert loaded_by(code) == [set()]


def test_collecting_the_scenarios_loads_no_torch() -> None:
    validation = Path(__file__).parents[1] / "validation"
    # Plugins that scenarios do not use would take as long as all else.
    without = ["-p", "no:hypothesispytest", "-p", "no:anyio"]
    arguments = ["--collect-only", "-q", *without, str(validation)]
    (loaded,) = loaded_by(
        f"import pytest\ncode = pytest.main({arguments!r})\nassert code == 0, code"
    )
    assert not loaded & {"torch", "ultralytics"}
