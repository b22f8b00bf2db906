"""The `dataset/` folder of a run root: which data the run saw, readable without qatval."""

from __future__ import annotations

import json
from pathlib import Path

from qatval.core.files import to_json
from qatval.data.subset import Subset


def write_dataset_folder(subset: Subset, folder: Path) -> None:
    """Write `provenance.json`, `train_images.txt`, `val_images.txt` and `dataset.yaml`.

    The lists hold one image id a line and can be given back as a user's own list. The folder is
    created where missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "provenance.json").write_text(to_json(subset.provenance), "utf-8")
    for split in (subset.train, subset.val):
        ids = "".join(f"{image_id}\n" for image_id in split.image_ids.tolist())
        (folder / f"{split.name}_images.txt").write_text(ids)
    # JSON strings are YAML strings, whatever is in a path or a class name.
    lines = [
        f"path: {json.dumps(str(subset.coco_root))}",
        f"train: {json.dumps(subset.train.image_dir.name)}",
        f"val: {json.dumps(subset.val.image_dir.name)}",
        f"nc: {len(subset.class_names)}",
        "names:",
        *(f"  {index}: {json.dumps(name)}" for index, name in enumerate(subset.class_names)),
    ]
    (folder / "dataset.yaml").write_text("\n".join(lines) + "\n", "utf-8")
