"""Builds a subset in a process of its own, and leaves traces of what it does.

Arguments: the COCO root, the cache, a log that gets the name of each annotation file that is
decoded, seconds that each decoding takes longer, and optionally a function of the builder to stop
in for good. ``<log>.ready`` is there when the building begins, ``<log>.stopped`` when it stops.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from qatval.data import cache, subset


def main(root: str, cache_dir: str, log: str, pause: str, stop_in: str = "") -> None:
    read = cache.read_annotations

    def logged(path: Path) -> Any:
        with Path(log).open("a") as file:
            file.write(f"{path.name}\n")
        time.sleep(float(pause))
        return read(path)

    def stop(*_: Any) -> None:
        Path(log).with_suffix(".stopped").touch()
        time.sleep(60)

    cache.read_annotations = logged
    if stop_in:
        setattr(subset, stop_in, stop)
    Path(log).with_suffix(".ready").touch()
    built = subset.build_subset(
        Path(root), train_images=10, val_images=5, seed=0, cache_dir=Path(cache_dir)
    )
    print(built.identity["train"]["image_ids_sha256"], len(built.train), built.directory.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
