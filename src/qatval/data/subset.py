"""Subsets: the images and labels of one run, built once and then found in the cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qatval.core.errors import QatvalError, UsageError
from qatval.core.files import sha256_of, staged_directory
from qatval.data.cache import Cache, DamagedError, digest_of, guard_of, save_arrays
from qatval.data.coco import AnnotationIndex, CocoFiles, coco_files, write_annotations
from qatval.data.entry import (
    VAL_ANNOTATIONS,
    Split,
    Subset,
    open_subset,
    read_record,
    split_arrays,
    verify_subset,
    write_record,
)
from qatval.data.image_files import folders_of, refuse_bad_images
from qatval.data.labels import (
    LabelCounts,
    losses,
    one_record_per_file,
    refuse_fractions,
    refuse_nothing,
    settled,
    training_labels,
    without_roots,
)
from qatval.data.naming import name_of
from qatval.data.selection import ImageList, draw_random, read_list, take_first, take_listed
from qatval.data.shapes import read_manifest

__all__ = ["Split", "Subset", "build_subset", "open_subset", "presets_of", "verify_subset"]

BUILDER_VERSION = 2
"""Part of every key and identity: raise it when the same inputs give another subset."""

ENTRY_FORM = 2
"""Part of every key: raise it when the same subset is kept in another form."""

_log = logging.getLogger(__name__)


def presets_of(coco_root: Path) -> str:
    """Return whose presets apply: ``"shapes"`` to drawn data, to all else ``"coco2017"``."""
    return "coco2017" if read_manifest(coco_root) is None else "shapes"


def build_subset(
    coco_root: Path,
    *,
    train_images: int | None,
    val_images: int | None,
    seed: int,
    cache_dir: Path | None = None,
    image_list: Path | None = None,
    verify: bool = False,
) -> Subset:
    """Find a subset in the cache, or build it there.

    Of several processes that ask at once, one builds and the others wait for it.

    Args:
        coco_root: Dataset in COCO 2017's layout.
        train_images: How many to draw with `seed`; None for all.
        val_images: How many of the smallest ids; None for all.
        seed: Of the draw.
        cache_dir: The cache, None for the default.
        image_list: Image ids or file names, one a line; they replace the rule for each split of
            which the list names an image.
        verify: Trust no file's size and time: hash the annotation files and the entry again, and
            decode every image whole.

    Raises:
        UsageError: A count below 1 or a seed below 0.
        QatvalError: Files are missing or not what they should be; the message says which.
    """
    for option, count in (("train images", train_images), ("val images", val_images)):
        if count is not None and count < 1:
            raise UsageError(f"the number of {option} must be at least 1, got {count}")
    if seed < 0:
        raise UsageError(f"the seed must be at least 0, got {seed}")
    root = coco_root.absolute()
    listed = None if image_list is None else read_list(image_list)
    request = _Request(root, coco_files(root), train_images, val_images, seed, listed)
    cache = Cache(cache_dir)
    if not verify and (found := _find(cache, request)):
        return found
    with cache.building():
        # While this process waited for the lock, another may have built it.
        found = None if verify else _find(cache, request)
        return found or _build(cache, request, verify=verify)


@dataclass(frozen=True)
class _Request:
    coco_root: Path
    files: Mapping[str, CocoFiles]
    train_images: int | None
    val_images: int | None
    seed: int
    listed: ImageList | None

    def asked(self) -> dict[str, Any]:
        """Return what the selection depends on besides the annotation files."""
        return {
            "train_images": self.train_images,
            "val_images": self.val_images,
            "seed": None if self.train_images is None else self.seed,
            "image_list_sha256": None if self.listed is None else self.listed.sha256,
        }

    def key(self, digests: Mapping[str, str]) -> str:
        """Return the name of the subset's cache entry."""
        what = {"builder_version": BUILDER_VERSION, "dataset": presets_of(self.coco_root)}
        # Versions that write entries of another form have entries of their own.
        named = {"named_by": "content", "form": ENTRY_FORM, "annotations": dict(digests)}
        return digest_of({**what, **named, **self.asked()})[:32]


def _find(cache: Cache, request: _Request) -> Subset | None:
    """Open the entry if nothing it depends on has changed since it was built."""
    known = {split: cache.known_digest(f.annotations) for split, f in request.files.items()}
    digests = {split: digest for split, digest in known.items() if digest is not None}
    key = request.key(digests)
    if digests == known and all(
        cache.known_sound(files.image_dir, key) for files in request.files.values()
    ):
        with suppress(DamagedError, KeyError):
            if read_record(cache.subsets / key)["coco_root"] == str(request.coco_root):
                return open_subset(cache.subsets / key)
    return None


def _build(cache: Cache, request: _Request, *, verify: bool) -> Subset:
    """Make the entry whole, reusing what is sound; runs under the cache's lock."""
    digests, indexes = {}, {}
    for name, files in request.files.items():
        indexes[name], digests[name] = cache.index(files.annotations, verify=verify)
    key = request.key(digests)
    entry = cache.subsets / key
    try:
        # The same data in two places are one entry; it follows whoever asked last.
        write_record(entry, verify_subset(entry) | {"coco_root": str(request.coco_root)})
        subset = open_subset(entry)
    except DamagedError:
        with staged_directory(entry) as folder:
            _write_entry(folder, key, request, digests, indexes)
            if entry.exists():
                cache.remove(entry, in_use=True)
        subset = open_subset(entry)
    for split in (subset.train, subset.val):
        image_dir, file_names = split.image_dir, split.file_names
        # Taken before looking: a folder that changes meanwhile must not pass for the one seen.
        guards = {str(f): guard_of(f) for f in folders_of(image_dir, file_names) if f.is_dir()}
        annotations = request.files[split.name].annotations
        refuse_bad_images(annotations, image_dir, file_names, split.sizes, decode=verify)
        cache.remember_sound(image_dir, key, guards)
    return subset


def _write_entry(
    folder: Path,
    key: str,
    request: _Request,
    digests: Mapping[str, str],
    indexes: Mapping[str, AnnotationIndex],
) -> None:
    train, val = indexes["train"], indexes["val"]
    if (
        train.category_ids.tolist() != val.category_ids.tolist()
        or train.category_names != val.category_names
    ):
        raise QatvalError(
            f"{request.files['val'].annotations}: its categories are not those of "
            f"{request.files['train'].annotations.name}; both splits must list the same"
        )
    known = without_roots(indexes)
    single, places = {}, {}
    for split, index in known.items():
        annotations = request.files[split].annotations
        single[split], places[split] = one_record_per_file(index, annotations)
    selections = {
        "train": draw_random(single["train"], request.train_images, request.seed),
        "val": take_first(single["val"], request.val_images),
    }
    if request.listed:
        # A list may name an image by any of its ids.
        for split, taken in take_listed(request.listed, known).items():
            selections[split] = replace(taken, rows=np.unique(places[split][taken.rows]))
    counts = {}
    for split, index in single.items():
        rows, annotations = selections[split].rows, request.files[split].annotations
        if not len(rows):
            raise QatvalError(f"{annotations}: lists no images; expected at least one")
        refuse_fractions(index, annotations)
        left, counted = settled(index, rows)
        records = np.bincount(places[split])[rows]
        counts[split] = replace(counted, merged=int(records.sum()) - len(rows))
        refuse_nothing(split, counts[split], annotations)
        _tell_of_changes(annotations, counts[split])
        _warn_of_unlabelled(annotations, _unlabelled(index))
        save_arrays(folder / f"{split}.npz", split_arrays(left, training_labels(left)))
        if split == "val":
            write_annotations(left, folder / VAL_ANNOTATIONS)
    drawn = presets_of(request.coco_root) == "shapes"
    record = {
        "key": key,
        "identity": {
            "dataset": name_of(digests, indexes, drawn=drawn),
            "builder_version": BUILDER_VERSION,
            "annotations": dict(digests),
            **{split: selections[split].identity(index) for split, index in single.items()},
        },
        "asked": request.asked(),
        "counts": {split: vars(counted) for split, counted in counts.items()},
        "unlabelled": {split: _unlabelled(index) for split, index in single.items()},
        "class_names": single["train"].category_names,
        "category_ids": single["train"].category_ids.tolist(),
        "coco_root": str(request.coco_root),
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    write_record(folder, record)


def _tell_of_changes(annotations: Path, counts: LabelCounts) -> None:
    if counts.merged or counts.boxes + counts.crowd < counts.annotations:
        _log.warning("%s: not all is as the file has it: %s", annotations, losses(counts))


def _unlabelled(index: AnnotationIndex) -> list[str]:
    """Return the names of the categories that an annotation file lists and never uses."""
    used = set(index.classes.tolist())
    return [name for row, name in enumerate(index.category_names) if row not in used]


def _warn_of_unlabelled(annotations: Path, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        said = "%s: no annotation is of these categories (%d): %s"
        _log.warning(said, annotations, len(names), shown)
