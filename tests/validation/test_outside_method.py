"""Parts of methods from outside: those that ARCHITECTURE.md shows, installed as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

REPOSITORY = Path(__file__).parents[2]
QATVAL = [sys.executable, "-c", "import sys; from qatval.cli.main import main; sys.exit(main())"]


def documented() -> tuple[str, str, str]:
    """Return the classes, the presets and the entry point of the example."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    preset, project = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    return code, preset, project


def install(site: Path) -> None:
    """Lay the example out as pip would."""
    code, preset, project = documented()
    (site / "extras").mkdir(parents=True)
    (site / "extras" / "__init__.py").write_text(code)
    (site / "extras" / "methods.toml").write_text(preset)
    info = site / "extras-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extras\nVersion: 1.0\n")
    groups = tomllib.loads(project)["project"]["entry-points"]
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for g, e in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))


def test_the_documented_parts_run(tmp_path: Path) -> None:
    from qatval.data.shapes import draw_dataset

    install(tmp_path / "site")
    draw_dataset(tmp_path / "shapes", train_images=8, val_images=4, size=64)
    methods = ("baseline", "clamp", "clamp+ema", "ptq", "ptq+pow2", "clamp+ema+pow2")
    options = f"--variant yolo10n --profile smoke --method {','.join(methods)} --device cpu"
    options += " --epochs 1 --batch 4 --imgsz 64 --weight-bits 2"
    places = ["--run-root", str(tmp_path / "run"), "--coco-root", str(tmp_path / "shapes")]
    places += ["--cache-dir", str(tmp_path / "cache")]
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [*QATVAL, "run", *options.split(), *places],
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
    )
    found = {}
    for method in methods:
        root = tmp_path / "run" / method
        found[method] = json.loads((root / "run_summary.json").read_text())
        assert found[method]["status"] != "incomplete"
    trajectories = {name: s["training"]["trajectory"] for name, s in found.items()}
    assert trajectories["clamp"] == trajectories["clamp+ema"] != trajectories["baseline"]
    assert found["clamp"]["method"]["stabilizers"] == [
        {"implementation": "extras:Clamping", "settings": {"margin": 0.4}, "report": {}}
    ]
    for name in ("ptq+pow2", "clamp+ema+pow2"):
        (done,) = found[name]["method"]["post_training"]
        assert done["implementation"] == "extras:PowersOfTwo"
        assert 0.0 < done["report"]["mean_log2_change"] <= 0.5
        assert scales(tmp_path / "run" / name, found[name]) == {0.0}
    assert scales(tmp_path / "run" / "ptq", found["ptq"]) != {0.0}
    assert "post_training" not in found["clamp"]["method"]


def scales(root: Path, summary: dict[str, Any]) -> set[float]:
    """Return how far the delivered weight scales are from powers of two, in factors of two."""
    from safetensors.torch import load_file

    tensors = load_file(root / summary["artifacts"]["weights"])
    logs = [value.log2() for name, value in tensors.items() if name.endswith(".scale")]
    return {float(distance) for log in logs for distance in (log - log.round()).flatten()}
