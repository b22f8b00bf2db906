"""What a subset of COCO costs: time, memory and files, cold and warm, against a bare decode.

Generates annotation files of COCO 2017's scale (118,287 + 5,000 images, 809,069 boxes, about
430 MB) and a JPEG for each image, many names for one of a few files, then measures each step in a
process of its own::

    python benchmarks/subset.py [--repeats 3] [--out benchmarks/results/subset.md]

The floor is the least that reading the same two files takes: the bytes, decoded by a typed
decoder that skips what detection does not need, and dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"train": (118_287, 809_069), "val": (5_000, 36_335)}
CATEGORY_IDS = [c for c in range(1, 91) if c not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
PHOTOGRAPHS = 32  # files that all image names share: COCO's own are 19 GB
PROFILES: dict[str, tuple[int | None, int | None]] = {"short": (2048, 256), "full": (None, None)}

# Each measured process prints the seconds its work took and its peak memory in MB.
FLOOR = """
import re, sys, time
from pathlib import Path
import msgspec

class Box(msgspec.Struct, array_like=True, gc=False):
    x: float
    y: float
    w: float
    h: float

class Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int

class Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: Box
    area: float
    iscrowd: int

class Category(msgspec.Struct, gc=False):
    id: int
    name: str

class Document(msgspec.Struct):
    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]

started = time.perf_counter()
for path in sorted(Path(sys.argv[1], "annotations").iterdir()):
    msgspec.json.decode(path.read_bytes(), type=Document)
seconds = time.perf_counter() - started
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(seconds, int(peak) / 1024)
"""

SUBSET = """
import re, sys, time
from pathlib import Path
from qatval.data.subset import build_subset

root, cache, train, val = sys.argv[1:]
started = time.perf_counter()
subset = build_subset(
    Path(root), train_images=eval(train), val_images=eval(val), seed=0, cache_dir=Path(cache)
)
assert len(subset.train) == (eval(train) or 118_287)
seconds = time.perf_counter() - started
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(seconds, int(peak) / 1024)
"""


@dataclass(frozen=True)
class Cost:
    """Medians over the repetitions."""

    seconds: float
    megabytes: float
    files: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coco"
        print("generating annotations of COCO's scale ...", file=sys.stderr)
        megabytes = generate(root)
        table = measure_all(root, args.repeats, megabytes)
    print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(table + "\n")


def measure_all(root: Path, repeats: int, megabytes: float) -> str:
    cache = root.with_name("cache")
    # Turn by turn, so that what else the machine does falls on all of them alike.
    floors: list[Cost] = []
    costs: dict[tuple[str, str], list[Cost]] = {}
    for repeat in range(repeats):
        print(f"round {repeat + 1} of {repeats} ...", file=sys.stderr)
        floors.append(run(FLOOR, root))
        for profile, (train, val) in PROFILES.items():
            subprocess.run(["rm", "-rf", cache], check=True)
            for state in ("cold", "warm"):
                cost = run(SUBSET, root, cache, train, val)
                files = sum(path.is_file() for path in cache.rglob("*"))
                costs.setdefault((profile, state), []).append(
                    Cost(cost.seconds, cost.megabytes, files)
                )
    floor = median(floors)
    lines = [
        "| step | seconds | of the floor | peak memory | files in the cache |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| bare decode (the floor) | {floor.seconds:.2f} | 1.00 | {floor.megabytes:.0f} MB | |",
    ]
    for (profile, state), measured in costs.items():
        cost = median(measured)
        ratio = statistics.median(
            one.seconds / beside.seconds for one, beside in zip(measured, floors, strict=True)
        )
        lines.append(
            f"| {profile}, {state} | {cost.seconds:.2f} | {ratio:.2f} "
            f"| {cost.megabytes:.0f} MB | {cost.files} |"
        )
    return "\n".join([*heading(repeats, megabytes), "", *lines])


def heading(repeats: int, megabytes: float) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "msgspec"))
    images, boxes = SPLITS["train"]
    return [
        "# Subset building at COCO's scale",
        "",
        f"`python benchmarks/subset.py`: generated annotations, {images:,} training images, "
        f"{boxes:,} boxes, {megabytes:.0f} MB in both files. Medians of {repeats} rounds, each "
        "measurement in a process of its own, without its start, the ratio to the floor of the "
        "same round; files in the page cache. Cold includes a look at every image: its header, "
        "its last bytes and its size. Targets: cold at most 1.7 (short) and 4 (full) of "
        "the floor and 1 s and 30 s for the images, 800 and 1200 MB; warm at most 0.1 s; at most "
        "10 files.",
        "",
        f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}.",
    ]


def run(script: str, *arguments: object) -> Cost:
    output = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    seconds, megabytes = map(float, output.split())
    return Cost(seconds, megabytes)


def median(costs: list[Cost]) -> Cost:
    def middle(value: Callable[[Cost], float]) -> float:
        return statistics.median(map(value, costs))

    return Cost(middle(lambda c: c.seconds), middle(lambda c: c.megabytes), costs[0].files)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def generate(root: Path) -> float:
    """Write both annotation files and the images; return the megabytes of annotations."""
    (root / "annotations").mkdir(parents=True)
    photographs = write_photographs(root / "photographs")
    total = 0
    for number, (split, (images, boxes)) in enumerate(SPLITS.items()):
        path = root / "annotations" / f"instances_{split}2017.json"
        rng = random.Random(number)
        image_ids = rng.sample(range(600_000 * number, 600_000 * (number + 1)), images)
        write_document(path, rng, image_ids, boxes)
        total += path.stat().st_size
        (root / f"{split}2017").mkdir()
        for place, image_id in enumerate(image_ids):
            os.link(
                photographs[place % PHOTOGRAPHS], root / f"{split}2017" / f"{image_id:012d}.jpg"
            )
    return total / 1e6


def write_photographs(folder: Path) -> list[Path]:
    """Write JPEGs of 640 x 480 px, about 65 kB, every other one with EXIF as cameras write it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(PHOTOGRAPHS)]
    for number, path in enumerate(paths):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
        exif = Image.Exif()
        if number % 2:
            exif[0x010F], exif[0x0112] = "a maker", 1
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=75, exif=exif)
    return paths


def write_document(path: Path, rng: random.Random, image_ids: list[int], boxes: int) -> None:
    # Polygons of COCO's lengths, a median of 18 points, reused: only their bytes matter here.
    polygons = [
        json.dumps([[round(rng.uniform(0, 640), 2) for _ in range(2 * max(4, int(points)))]])
        for points in (rng.lognormvariate(2.9, 0.7) for _ in range(2000))
    ]
    with path.open("w") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        file.write(
            ", ".join(
                f'{{"license": 3, "file_name": "{image_id:012d}.jpg", "coco_url": '
                f'"http://images.example.org/train2017/{image_id:012d}.jpg", "height": 480, '
                '"width": 640, "date_captured": "2013-11-14 11:18:45", "flickr_url": '
                f'"http://farm8.example.org/7384/9599983034_ab95d55dcf_z.jpg", "id": {image_id}}}'
                for image_id in image_ids
            )
        )
        file.write('], "annotations": [')
        with_objects = image_ids[: len(image_ids) * 99 // 100]
        for number in range(boxes):
            width, height = 5 + 300 * rng.random(), 5 + 200 * rng.random()
            file.write(
                f'{", " if number else ""}{{"segmentation": {rng.choice(polygons)}, '
                f'"area": {0.6 * width * height:.4f}, "iscrowd": {int(number % 80 == 0)}, '
                f'"image_id": {rng.choice(with_objects)}, '
                f'"bbox": [{340 * rng.random():.2f}, {280 * rng.random():.2f}, {width:.2f}, '
                f'{height:.2f}], "category_id": {rng.choice(CATEGORY_IDS)}, "id": {number + 1}}}'
            )
        file.write('], "categories": [')
        file.write(
            ", ".join(
                f'{{"supercategory": "", "id": {category_id}, "name": "class {category_id}"}}'
                for category_id in CATEGORY_IDS
            )
        )
        file.write("]}")


if __name__ == "__main__":
    main()
