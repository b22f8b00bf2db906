"""The house rules: dependencies point one way, and the quick parts stay quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

PACKAGE = Path(str(files("qatval")))

# Lower floors first; a module may import from its own floor and those below it.
FLOORS = (
    {"errors", "__init__", "numbers"},
    {"methods"},
    {"config", "record", "verdicts", "environment", "progress"},
    {
        "statistics",
        "runs",
        "precision",
        "comparability",
        "pairing",
        "effects",
        "posttraining",
        "rules",
    },
    {"comparison", "gate", "thresholds", "scenarios"},
    {"data", "quant", "gpu"},
    {"train"},
    {"report"},
    {"runroot", "summary", "checkpoint_store", "doctor"},
    {"trained"},
    {"scoring"},
    {"engine"},
    {"runner"},
    {"pytest_report"},
    {"cli", "pytest_options", "pytest_plugin"},
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def unit(module: str) -> str:
    """Return the part of the house a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """Return every module of the package that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qatval"):
            if node.module == "qatval":
                found |= {f"qatval.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("qatval")}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        below = unit(module)
        if below.startswith("__version__"):
            continue
        assert FLOOR[below] <= FLOOR[own], f"{own} imports {module}, which is above it"


def test_only_the_right_modules_know_the_libraries() -> None:
    owners = {
        "ultralytics": {"train", "doctor"},
        "brevitas": {"quant", "doctor"},
        "pycocotools": {"data", "doctor"},
        "pytest": {"pytest_options", "pytest_plugin"},
    }
    for path in MODULES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                library = name.split(".")[0]
                if library in owners:
                    assert own in owners[library], f"{path} imports {library}"


def test_no_module_holds_too_much() -> None:
    for path in MODULES:
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= 400, f"{path.relative_to(PACKAGE)} has {lines} lines: what is the second"


HEAVY = ("torch", "ultralytics", "brevitas", "cv2", "scipy", "jinja2")


def loaded_by(code: str) -> set[str]:
    """Return which heavy libraries a program has loaded when it ends."""
    program = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    return set(output.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module",
    [
        "methods",
        "config",
        "record",
        "verdicts",
        "comparison",
        "gate",
        "thresholds",
        "runner",
        "scenarios",
    ],
)
def test_the_lower_floors_load_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import qatval.{module}") == set()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "from qatval.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    )
    assert loaded_by(code) == set()


def test_collecting_the_scenarios_loads_no_torch() -> None:
    validation = Path(__file__).parents[1] / "validation"
    code = (
        "import pytest\n"
        f"code = pytest.main(['--collect-only', '-q', {str(validation)!r}])\n"
        "assert code == 0, code"
    )
    assert "torch" not in loaded_by(code)
    assert "ultralytics" not in loaded_by(code)
