"""Validation images without the rest of a dataset: what scoring a finished model needs.

The images, boxes and identity are those that `build_subset` gives a run; a test holds them
together. Nothing is cached, and the training images need not be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qatval.core.errors import QatvalError
from qatval.data.coco import AnnotationIndex, CocoFiles, read_annotations
from qatval.data.image_files import refuse_bad_images
from qatval.data.labels import (
    Labels,
    one_record_per_file,
    refuse_fractions,
    refuse_nothing,
    settled,
    training_labels,
    without_roots,
)
from qatval.data.selection import take_first


@dataclass(frozen=True)
class ValidationSet:
    """Images to score a model on.

    Attributes:
        image_dir: Folder that the file names are relative to.
        index: The images with the annotations that count.
        labels: The boxes that are scored.
        identity: What these images are, as the identity of a run's data has it.
        annotations_sha256: Of the annotation file.
    """

    image_dir: Path
    index: AnnotationIndex
    labels: Labels
    identity: dict[str, Any]
    annotations_sha256: str

    def are_those_of(self, run_data: dict[str, Any] | None) -> bool:
        """Say whether a run with data of this identity was scored on the same."""
        known = run_data or {}
        annotations = known.get("annotations")
        return (
            isinstance(annotations, dict)
            and annotations.get("val") == self.annotations_sha256
            and known.get("val") == self.identity
        )


def validation_set(
    files: CocoFiles, count: int | None, class_names: Sequence[str]
) -> ValidationSet:
    """Select validation images as a run does and look at each of them.

    Args:
        files: Where they and their annotations are.
        count: How many of the smallest ids; None for all.
        class_names: Of the model.

    Raises:
        QatvalError: Files are missing or not what they should be; the message says which.
    """
    if not files.image_dir.is_dir():
        raise QatvalError(f"{files.image_dir}: no such image folder; name one with images")
    index, digest = read_annotations(files.annotations)
    if len(index.category_names) != len(class_names):
        # A run knows by both splits whether the category above all others is no class.
        index = without_roots({"val": index})["val"]
    index, _ = one_record_per_file(index, files.annotations)
    selection = take_first(index, count)
    if not len(selection.rows):
        raise QatvalError(f"{files.annotations}: lists no images; expected at least one")
    refuse_fractions(index, files.annotations)
    left, counts = settled(index, selection.rows)
    refuse_nothing("val", counts, files.annotations)
    refuse_bad_images(files.annotations, files.image_dir, left.file_names, left.sizes, decode=False)
    identity = selection.identity(index)
    return ValidationSet(files.image_dir, left, training_labels(left), identity, digest)
