"""A whole run on a machine that gives little: no home, an ASCII locale, started elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

QATVAL = [sys.executable, "-c", "import sys; from qatval.cli.main import main; sys.exit(main())"]

# What the environment says of the user's folders and of text.
SAYS = ("HOME", "XDG_", "YOLO_", "QATVAL_", "MPL", "LC_", "LANG", "PYTHONIOENCODING", "PYTHONUTF8")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose folders and files have names beyond ASCII."""
    from qatval.data.shapes import draw_dataset

    root = tmp_path_factory.mktemp("data") / "bilder für 猫"
    draw_dataset(root, train_images=8, val_images=4, size=64)
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        document = json.loads(path.read_text("utf-8"))
        for image in document["images"]:
            there = root / f"{split}2017" / image["file_name"]
            image["file_name"] = f"grün {image['file_name']}"
            there.rename(there.with_name(image["file_name"]))
        path.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    return root


@pytest.mark.parametrize(
    ("home", "says"),
    [
        ("/proc/nowhere", {"LC_ALL": "C"}),
        ("a file", {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}),
    ],
    ids=["no home", "ascii"],
)
def test_a_run_on_a_machine_that_gives_little(
    home: str, says: dict[str, str], photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    start = tmp_path / "anderswo"
    start.mkdir()
    options = "--variant yolo10n --method ema --profile smoke --device cpu"
    options += " --epochs 1 --imgsz 64 --batch 8"
    places = ["--coco-root", str(photographs), "--run-root", "läufe", "--cache-dir", "höhle"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(SAYS)}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    env |= {"HOME": home if home.startswith("/") else str(tmp_path / home), **says}
    done = subprocess.run(
        [*QATVAL, "run", *options.split(), *places], cwd=start, env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    summary = json.loads((start / "läufe" / "run_summary.json").read_text("utf-8"))
    assert summary["status"] != "incomplete"
    assert summary["dataset"]["coco_root"] == str(photographs)
    assert Path(summary["model"]["checkpoint"]).is_file()  # found in the checkout
    shutil.rmtree(start / "läufe")
    assert sorted(path.name for path in start.iterdir()) == ["höhle"]
