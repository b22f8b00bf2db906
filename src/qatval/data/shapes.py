"""The embedded dataset: painted shapes in COCO 2017's own layout and JSON format.

For when there is no COCO. Everything downstream of it is the code that reads real COCO, so it
has what real COCO has: category ids with gaps, crowds with RLE masks, images without objects,
objects cut by the border or half hidden, images of many sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qatval.core.errors import QatvalError
from qatval.core.files import staged_directory, to_json
from qatval.data.coco import SPLITS, CocoFiles
from qatval.data.scenes import (
    CLASS_NAMES,
    SAMPLES,
    UNIT,
    Item,
    Mask,
    Scene,
    compose_scene,
    coverage,
    polygon_area,
)

MANIFEST_NAME = "qatval-dataset.json"
VERSION = 2
CATEGORY_IDS = (1, 3, 7, 18, 44, 90)
SUPERCATEGORIES = ("round", "angular", "angular", "spiky", "round", "spiky")
DATE = "2025-01-01"
TRAIN_IMAGES, VAL_IMAGES = 512, 128
BACKGROUND_TEXTURE = 0.2
ITEM_TEXTURE = 0.4
CONTRAST = (0.3, 0.6)

Image = NDArray[np.float32]  # (height, width, 3) BGR, about 0 to 1


def draw_dataset(
    out: Path,
    *,
    seed: int = 0,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    size: int = 128,
) -> None:
    """Draw the dataset into `out`, or leave it alone when it is there already.

    Image i of a split depends on `seed`, `size`, the split and i alone, so a larger dataset
    begins with the images of a smaller one. The annotation files have the same bytes on every
    machine; the JPEG files have the same bytes for the same OpenCV.

    Args:
        out: becomes the COCO root: `annotations/`, `train2017/`, `val2017/` and a manifest.
        size: long side of every image in px.

    Raises:
        QatvalError: `out` holds something else, or a dataset drawn with other settings.
    """
    settings = {"name": "shapes", "version": VERSION, "seed": seed, "size": size}
    settings |= {"train_images": train_images, "val_images": val_images}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        _check_same(out, settings)
        return
    with staged_directory(out) as folder:
        (folder / "annotations").mkdir()
        for split, count in zip(SPLITS, (train_images, val_images), strict=True):
            _draw_split(folder, split, count, seed, size)
        (folder / MANIFEST_NAME).write_text(to_json(settings), "utf-8")


def read_manifest(coco_root: Path) -> Mapping[str, Any] | None:
    """The settings an embedded dataset was drawn with; None for any other COCO root."""
    try:
        manifest = json.loads((coco_root / MANIFEST_NAME).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("name") == "shapes" else None


def _check_same(out: Path, settings: Mapping[str, Any]) -> None:
    found = read_manifest(out)
    if found is None:
        raise QatvalError(
            f"{out}: expected an empty or new folder for the dataset, found other files in it; "
            "give another --out"
        )
    differing = [f"{key} {found.get(key)}" for key in settings if found.get(key) != settings[key]]
    if differing:
        raise QatvalError(
            f"{out}: holds a shapes dataset drawn with {', '.join(differing)}; delete the folder, "
            "give another --out, or ask for the same settings"
        )


def _draw_split(folder: Path, split: str, count: int, seed: int, size: int) -> None:
    import cv2

    files = CocoFiles.of(folder, split)
    files.image_dir.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        stream = [seed, SPLITS.index(split), index]
        rng = np.random.default_rng([*stream, 0])
        # As in COCO: ids with gaps, and none that both splits use.
        image_id = 16 * index + 8 * SPLITS.index(split) + int(rng.integers(1, 8))
        scene = compose_scene(rng, size)
        file_name = f"{image_id:012d}.jpg"
        # The pixels have a stream of their own: repainting never moves an annotation.
        pixels = _paint(scene, np.random.default_rng([*stream, 1]))
        path = files.image_dir / file_name
        if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise QatvalError(f"{path}: could not be written; is the disk full?")
        images.append(
            {
                "license": 1,
                "file_name": file_name,
                "coco_url": "",
                "height": scene.height,
                "width": scene.width,
                "date_captured": DATE,
                "flickr_url": "",
                "id": image_id,
            }
        )
        annotations += [
            _annotation_record(100 * image_id + place, image_id, item)
            for place, item in enumerate(scene.items)
        ]
    document = {
        "info": {
            "description": f"qatval shapes, {split}, seed {seed}",
            "url": "",
            "version": f"{VERSION}.0",
            "year": int(DATE[:4]),
            "contributor": "qatval",
            "date_created": DATE,
        },
        "licenses": [{"id": 1, "name": "Public domain", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": group, "id": category_id, "name": name}
            for group, category_id, name in zip(
                SUPERCATEGORIES, CATEGORY_IDS, CLASS_NAMES, strict=True
            )
        ],
    }
    files.annotations.write_text(json.dumps(document, separators=(",", ":")))


def _annotation_record(annotation_id: int, image_id: int, item: Item) -> dict[str, Any]:
    segmentation: Any
    if item.crowd:
        segmentation = {"counts": _run_lengths(item.mask), "size": list(item.mask.shape)}
        area = float(item.mask.sum())
    else:
        segmentation = [(polygon / UNIT).ravel().tolist() for polygon in item.polygons]
        area = sum(map(polygon_area, item.polygons))
    return {
        "segmentation": segmentation,
        "area": area,
        "iscrowd": int(item.crowd),
        "image_id": image_id,
        "bbox": list(item.box()),
        "category_id": CATEGORY_IDS[item.class_index],
        "id": annotation_id,
    }


def _run_lengths(mask: Mask) -> list[int]:
    """COCO's uncompressed RLE: column by column, starting with the length of a run of zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return lengths


def _paint(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint a scene, back to front; (height, width, 3) BGR."""
    import cv2

    height, width = scene.height, scene.width
    image = _material(rng, height, width, BACKGROUND_TEXTURE)
    for outline in scene.clutter:
        material = _material(rng, height, width, BACKGROUND_TEXTURE)
        _lay(image, coverage(outline, height, width), material)
    for item in scene.items:
        for outline in item.polygons:
            covered = coverage(outline, height, width)
            material = _material(rng, height, width, ITEM_TEXTURE)
            _contrast(material, image, covered > 0, rng)
            _lay(image, covered, material)
    # Uneven light and sensor noise over everything.
    image *= 0.8 + 0.4 * _noise(rng, height, width, 2)[..., :1]
    image += rng.normal(0, rng.uniform(0.005, 0.025), image.shape).astype(np.float32)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8)).astype(np.float32)
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)


def _lay(image: Image, covered: NDArray[np.uint8], material: Image) -> None:
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not len(rows):
        return
    there = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    alpha = covered[there][..., None].astype(np.float32) / SAMPLES**2
    image[there] += alpha * (material[there] - image[there])


def _contrast(material: Image, behind: Image, where: Mask, rng: np.random.Generator) -> None:
    """Shift the material's brightness in place until it stands out from what it will cover."""
    if not where.any():
        return
    difference = material[where].mean(axis=0) - behind[where].mean(axis=0)
    wanted = rng.uniform(*CONTRAST)
    if np.abs(difference).max() < wanted:
        brighter = behind[where].mean() < 0.5
        material += np.float32(wanted if brighter else -wanted) - difference.mean()


def _material(rng: np.random.Generator, height: int, width: int, texture: float) -> Image:
    """A surface in two colours that say nothing about a class, up to `texture` (0 to 1) apart."""
    first = _colour(rng)
    second = first + (_colour(rng) - first) * np.float32(texture * rng.random())
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
    across = y * np.float32(np.cos(turn)) - x * np.float32(np.sin(turn))
    period = np.float32(max(height, width) * rng.uniform(0.03, 0.1))
    mix: NDArray[Any]
    kind = rng.integers(5)
    if kind == 0:  # stripes
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    elif kind == 1:  # checks
        mix = ((along // period + across // period) % 2).astype(np.float32)
    elif kind == 2:  # dots
        wave = np.cos(2 * np.pi * along / period) + np.cos(2 * np.pi * across / period)
        mix = (wave > 0.8).astype(np.float32)
    elif kind == 3:  # one colour fading into the other
        mix = along / max(height, width) % 1
    else:  # clouds
        mix = _noise(rng, height, width, int(rng.integers(3, 16)))[..., 0]
    grain = _noise(rng, height, width, int(rng.integers(16, 40))) - np.float32(0.5)
    surface = (second - first) * mix[..., None]
    surface += first
    surface += np.float32(rng.uniform(0, 0.5) * texture) * grain
    return np.asarray(surface, np.float32)


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    grey = rng.uniform(0.15, 0.85)
    return (grey + rng.normal(0, 0.16, 3)).clip(0.02, 0.98).astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Image:
    """Smooth noise, about `cells` bumps wide, about 0 to 1."""
    import cv2

    coarse = rng.random((cells + 1, cells + 1, 3), dtype=np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32)
