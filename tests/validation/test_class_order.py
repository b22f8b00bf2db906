"""Runs on a dataset whose classes stand in another order than the checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qatval.core.errors import QatvalError
from qatval.core.progress import Progress
from qatval.core.schema import violations
from qatval.core.summary import read_summary
from qatval.run import runner
from qatval.run.configuration import configure

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

EMBEDDED = Path(__file__).parents[2] / "models" / "shapes" / "yolo10n.safetensors"


def changed(root: Path, names: dict[str, str], *, backwards: bool) -> None:
    """Rename a dataset's categories, and number them backwards if asked to."""
    for path in (root / "annotations").iterdir():
        document = json.loads(path.read_text())
        ids = [category["id"] for category in document["categories"]]
        anew = dict(zip(ids, reversed(ids) if backwards else ids, strict=True))
        for category in document["categories"]:
            name = category["name"]
            category.update(id=anew[category["id"]], name=names.get(name, name))
        for annotation in document["annotations"]:
            annotation["category_id"] = anew[annotation["category_id"]]
        path.write_text(json.dumps(document))


def test_all_that_loads_the_checkpoint_has_the_order_of_the_dataset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from qatval.data.shapes import draw_dataset
    from qatval.train.models import read_info

    draw_dataset(tmp_path / "data", train_images=16, val_images=32)
    changed(tmp_path / "data", {"circle": "Circle"}, backwards=True)
    config = configure(
        variant="yolo10n",
        methods=["distill", "fp32", "ptq"],  # a teacher, a float start, an anchor and none of them
        profile="smoke",
        run_root=tmp_path / "runs",
        coco_root=tmp_path / "data",
        checkpoint=EMBEDDED,
        epochs=1,
        batchnorm="anchored",
        device="cpu",
        cache_dir=tmp_path / "cache",
    )
    runner.run(config, Progress("order", quiet=True))
    assert "6 are mapped by name; class names are taken for the same: 'Circle' for" in caplog.text
    for method in config.methods:
        root = config.root_of(method.name)
        summary = read_summary(root)[1]
        assert violations(summary) == []
        assert summary["failed_checks"] == []
        found = summary["model"]["classes"]
        assert (found["match"], found["rows"]) == ("mapped", [5, 4, 3, 2, 1, 0])
        assert found["renamed"] == {"Circle": "circle"}
        assert summary["metrics"]["fp32_value"] > 0.5
        assert summary["metrics"]["final_value"] > 0.4
        delivered = read_info(root / summary["artifacts"]["weights"])
        assert delivered.class_names == ("star", "ring", "cross", "triangle", "square", "Circle")
        assert "- classes: mapped by name" in (root / "summary.md").read_text()


def test_other_classes_are_refused_before_any_training(tmp_path: Path) -> None:
    from qatval.data.shapes import draw_dataset

    draw_dataset(tmp_path / "data", train_images=2, val_images=2)
    changed(tmp_path / "data", {"circle": "disc"}, backwards=False)
    config = configure(
        variant="yolo10n",
        methods=["ema"],
        profile="smoke",
        run_root=tmp_path / "run",
        coco_root=tmp_path / "data",
        checkpoint=EMBEDDED,
        device="cpu",
        cache_dir=tmp_path / "cache",
    )
    with pytest.raises(QatvalError, match="the dataset has 'disc', only the checkpoint has 'c"):
        runner.run(config, Progress("other", quiet=True))
    assert "'disc'" in read_summary(tmp_path / "run")[1]["error"]["message"]
