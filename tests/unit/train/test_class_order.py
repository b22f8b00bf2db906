"""A head's rows in the dataset's order: every number is there, in another place."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qatval.core import presets
from qatval.core.errors import QatvalError
from qatval.data.shapes import draw_dataset
from qatval.data.subset import Subset, build_subset
from qatval.testing.scenarios import REAL_DATA_VARIABLE, RealData
from qatval.train.evaluation import Evaluation, evaluator
from qatval.train.models import (
    CheckpointInfo,
    build_model,
    load_matched,
    load_pretrained,
    save_checkpoint,
    starting_model,
)

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "models" / "shapes" / "yolo10n.safetensors"
REAL = RealData(Path(os.environ.get(REAL_DATA_VARIABLE) or ROOT.parent / "shared" / "real"))
VARIANTS = [presets.variant(name) for name in presets.variant_names() if name.endswith("n")]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.architecture)
def test_every_head_answers_in_the_order_of_the_dataset(
    variant: presets.Variant, suffix: str, tmp_path: Path
) -> None:
    names = [f"thing {letter}" for letter in "abcdefghijklmnopqrs"]  # more than a vector of floats
    order = random.Random(0).sample(range(len(names)), len(names))
    model: Any = build_model(variant.architecture, names).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # new heads are copies of each other
            parameter.add_(0.02 * torch.randn_like(parameter))
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save({"model": model}, path)
    else:
        save_checkpoint(path, model, CheckpointInfo("float", variant.architecture, tuple(names)))
    wanted = [names[index] for index in order]
    mapped, match = load_matched(path, variant.architecture, wanted)
    assert (match.kind, match.rows) == ("mapped", tuple(order))
    assert mapped.names == dict(enumerate(wanted))
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64)
        before, after = (variant.detector.heads(m(image)[1]) for m in (model, mapped))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["scores"][:, order], other["scores"])
        assert torch.equal(one["boxes"], other["boxes"])


def test_whatever_loads_the_checkpoint_again_has_the_same_order() -> None:
    names = ("star", "ring", "cross", "triangle", "square", "circle")
    reference, match = load_matched(EMBEDDED, "yolov10n.yaml", names)
    assert match.kind == "mapped"
    for again in (
        load_pretrained(EMBEDDED, "yolov10n.yaml", names),
        starting_model(EMBEDDED, "yolov10n.yaml", names, None),
    ):
        found = again.state_dict()
        for name, tensor in reference.state_dict().items():
            assert torch.equal(found[name], tensor), name


def test_other_names_are_refused_with_the_file(tmp_path: Path) -> None:
    names = ("circle", "square", "triangle", "cross", "ring", "hexagon")
    with pytest.raises(QatvalError, match=r"yolo10n\.safetensors detects other .* 'hexagon', only"):
        load_pretrained(EMBEDDED, "yolov10n.yaml", names)


def renumbered(root: Path, to: Path, spell: Any = str) -> Path:
    """Copy a dataset with its categories numbered anew, in an order drawn at random."""
    shutil.copytree(root, to)
    for path in (to / "annotations").iterdir():
        document = json.loads(path.read_text())
        ids = [category["id"] for category in document["categories"]]
        anew = dict(zip(ids, random.Random(1).sample(range(1, 400), len(ids)), strict=True))
        for category in document["categories"]:
            category.update(id=anew[category["id"]], name=spell(category["name"]))
        for annotation in document["annotations"]:
            annotation["category_id"] = anew[annotation["category_id"]]
        path.write_text(json.dumps(document))
    return to


def plain(name: str) -> str:
    return name.upper().replace("_", " ")


def same_detections(evaluations: list[Evaluation], subsets: list[Subset]) -> None:
    """Hold the detections to each other, by the names of their classes.

    The boxes are the same. A score may differ in the last bit of its logit: the kernel of a
    convolution sums differently in the rows that do not fill a vector.
    """
    found = []
    for evaluation, subset in zip(evaluations, subsets, strict=True):
        names = dict(zip(subset.category_ids, subset.class_names, strict=True))
        found.append(
            sorted(
                (d["image_id"], plain(names[d["category_id"]]), *d["bbox"], d["score"])
                for d in evaluation.detections
            )
        )
    one, two = found
    assert [d[:-1] for d in one] == [d[:-1] for d in two]
    assert [d[-1] for d in one] == pytest.approx([d[-1] for d in two], rel=0, abs=1.1e-6)


def compared(
    root: Path, other: Path, checkpoint: Path, imgsz: int, images: int, tmp_path: Path
) -> tuple[list[Evaluation], list[Subset]]:
    subsets = [
        build_subset(r, train_images=1, val_images=images, seed=0, cache_dir=tmp_path / "cache")
        for r in (root, other)
    ]
    arguments = {"imgsz": imgsz, "batch": 4, "seed": 0, "device": "cpu", "workers": 0}
    evaluations = []
    for subset in subsets:
        scorer = evaluator(subset, arguments, torch.device("cpu"), tmp_path)
        model = load_pretrained(checkpoint, "yolov10n.yaml", subset.class_names)
        evaluations.append(scorer.evaluate(model, keep_detections=True))
    return evaluations, subsets


def test_a_renumbered_dataset_scores_what_the_original_scores(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "original", train_images=2, val_images=16)
    other = renumbered(tmp_path / "original", tmp_path / "other", str.upper)
    (one, two), (first, second) = compared(
        tmp_path / "original", other, EMBEDDED, 128, 16, tmp_path
    )
    assert second.class_names != tuple(map(str.upper, first.class_names))
    assert one.value > 0.6
    same_detections([one, two], [first, second])
    for name, value in one.metrics.items():
        # The mean over classes is summed in another order, which may move its last bit; precision
        # and recall are those at a score, interpolated.
        exact = 1e-15 if "mAP" in name else 1e-6
        assert two.metrics[name] == pytest.approx(value, rel=exact, abs=0), name


def test_real_photographs_in_another_order(tmp_path: Path) -> None:
    root, checkpoint = REAL.coco_root, REAL.checkpoint("yolo10n")
    if root is None or checkpoint is None:
        pytest.skip("; ".join(REAL.missing("yolo10n")))
    other = renumbered(root, tmp_path / "other", lambda name: name.title().replace(" ", "_"))
    (one, two), subsets = compared(root, other, checkpoint, 256, 16, tmp_path)
    assert one.value > 0.2
    same_detections([one, two], subsets)
    assert two.value == pytest.approx(one.value, rel=1e-14, abs=0)
