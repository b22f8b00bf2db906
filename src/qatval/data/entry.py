"""A subset as it lies in the cache: its files, opened and verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qatval.core.files import atomic_write, encoded, sha256_of, to_json
from qatval.core.locks import Use
from qatval.data.cache import HELD, DamagedError, load_arrays, pack_names, unpack_names
from qatval.data.coco import SPLITS, AnnotationIndex, coco_files
from qatval.data.labels import Labels

_RECORD = "subset.json"
VAL_ANNOTATIONS = "val_annotations.json"


@dataclass(frozen=True)
class Split:
    """The images of one split, ascending by id, and their training labels.

    Attributes:
        name: ``"train"`` or ``"val"``.
        image_dir: Folder that the file names are relative to.
        image_ids: (N,).
        file_names: N names.
        sizes: (N, 2), height and width in px.
        offsets, classes, boxes: As in `Labels`.
    """

    name: str
    image_dir: Path
    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def first(self, images: int) -> Split:
        """Return the split's first images alone, all of them if there are no more."""
        offsets = self.offsets[: images + 1]
        return replace(
            self,
            image_ids=self.image_ids[:images],
            file_names=self.file_names[:images],
            sizes=self.sizes[:images],
            offsets=offsets,
            classes=self.classes[: offsets[-1]],
            boxes=self.boxes[: offsets[-1]],
        )


@dataclass(frozen=True)
class Subset:
    """What one run trains and validates on.

    Attributes:
        directory: Its place in the cache.
        coco_root: Where the images lie.
        dataset_name: What the data have earned to be called, see `qatval.data.naming`.
        class_names: By class index.
        category_ids: COCO category id by class index.
        train, val: The images and labels.
        val_annotations: COCO file of the val images alone, for pycocotools: the boxes of `val`,
            and crowd regions.
        identity: What the data are and nothing about where they lie, JSON-able. Two subsets are
            the same data iff their identities are equal. Only ``train.seed`` and
            ``train.image_ids_sha256`` depend on the seed.
        provenance: The identity, where the data lie, asked-for and effective counts, what was
            dropped or cut, and which classes a split's annotation file never uses, JSON-able.
        use: Keeps the entry from being removed for as long as this object lives.
    """

    directory: Path
    coco_root: Path
    dataset_name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    train: Split
    val: Split
    val_annotations: Path
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    use: Use


def open_subset(directory: Path) -> Subset:
    """Open a subset that `build_subset` has built, where it was last asked for.

    Every file is compared with its digest: of all of COCO they are 30 MB, which takes 0.05 s.

    Raises:
        DamagedError: The entry is missing, incomplete or altered.
        QatvalError: The dataset is no longer where it was.
    """
    with _read_whole(directory):
        use = Use(directory / HELD)
        record = verify_subset(directory)
        root = Path(record["coco_root"])
        files = coco_files(root)
        splits = {}
        for split in SPLITS:
            arrays: dict[str, Any] = load_arrays(directory / f"{split}.npz")
            arrays["file_names"] = unpack_names(arrays["file_names"])
            splits[split] = Split(split, files[split].image_dir, **arrays)
        return Subset(
            directory=directory,
            coco_root=root,
            dataset_name=record["identity"]["dataset"],
            class_names=tuple(record["class_names"]),
            category_ids=tuple(record["category_ids"]),
            **splits,
            val_annotations=directory / VAL_ANNOTATIONS,
            identity=record["identity"],
            provenance={
                "identity": record["identity"],
                "coco_root": str(root),
                "annotations": {split: str(files[split].annotations) for split in SPLITS},
                "cache_entry": str(directory),
                "asked": record["asked"],
                "counts": record["counts"],
                "unlabelled": record["unlabelled"],
            },
            use=use,
        )


def verify_subset(directory: Path) -> dict[str, Any]:
    """Compare every file of an entry with its digest, and return what the entry says about itself.

    Raises:
        DamagedError: A file is not as it was.
    """
    record = read_record(directory)
    with _read_whole(directory):
        for name, digest in record["files"].items():
            if sha256_of(directory / name) != digest:
                raise DamagedError(f"{directory / name}: its content has changed")
    return record


def read_record(directory: Path) -> dict[str, Any]:
    """Read what the entry says about itself; DamagedError if it is not what was written there."""
    with _read_whole(directory):
        record: dict[str, Any] = json.loads((directory / _RECORD).read_bytes())
        if record.pop("sha256") != _digest(record):
            raise DamagedError(f"{directory / _RECORD}: its content has changed")
        if record["key"] != directory.name:
            raise DamagedError(f"{directory}: is the entry '{record['key']}'")
        return record


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Replace what the entry says about itself, in one step."""
    atomic_write(directory / _RECORD, to_json({**record, "sha256": _digest(record)}))


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(encoded(to_json(record))).hexdigest()


@contextmanager
def _read_whole(directory: Path) -> Iterator[None]:
    """Turn what reading a damaged entry, or one that something else wrote, can raise into one."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{directory}: not a whole subset ({error!r}); 'qatval dataset build' makes it again"
        ) from error


def split_arrays(index: AnnotationIndex, labels: Labels) -> dict[str, NDArray[Any]]:
    """Return the arrays that `open_subset` makes a split of."""
    return {
        "image_ids": index.image_ids,
        "file_names": pack_names(index.file_names),
        "sizes": index.sizes,
        "offsets": labels.offsets,
        "classes": labels.classes,
        "boxes": labels.boxes,
    }
