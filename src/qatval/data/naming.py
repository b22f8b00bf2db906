"""Name a dataset by its content, not by its folder.

References and groups of comparable runs go by this name. Not every dataset in COCO's layout is
COCO 2017, and not every drawn one is the embedded dataset that the references were measured on.
"""

from __future__ import annotations

from collections.abc import Mapping

from qatval.core.presets import EMBEDDED
from qatval.data.cache import digest_of
from qatval.data.coco import AnnotationIndex

COCO_2017 = "coco2017"

# SHA-256 of the annotation files that ``qatval dataset shapes`` draws with its defaults.
_EMBEDDED_ANNOTATIONS = {
    "train": "866316f58d775ad91a22bdb6d3ed6f172893d7d429f4568eb68078da6090d6ea",
    "val": "f0f8d96d6b98139a6fbb05ca3a1325b6fc38ffefb2fe23c008b27b964cd59303",
}

# Images and annotations of COCO 2017 as released, and its number of categories. Not a digest: the
# release is also distributed with its JSON formatted anew.
_COCO_2017 = {"train": (118_287, 860_001), "val": (5_000, 36_781)}
_COCO_CATEGORIES = 80


def name_of(
    digests: Mapping[str, str], indexes: Mapping[str, AnnotationIndex], *, drawn: bool
) -> str:
    """Return a dataset's name.

    ``"shapes"`` and ``"coco2017"`` are the two that are known; any other is ``"shapes-"`` (drawn,
    with other settings) or ``"custom-"`` and the beginning of the digest of its annotation files.

    Args:
        digests: SHA-256 of the annotation file of each split.
        indexes: The same files, decoded.
        drawn: Whether it says of itself that qatval drew it.
    """
    if digests == _EMBEDDED_ANNOTATIONS:
        return EMBEDDED
    sizes = {split: (len(i.image_ids), len(i.owners)) for split, i in indexes.items()}
    categories = {len(index.category_ids) for index in indexes.values()}
    if sizes == _COCO_2017 and categories == {_COCO_CATEGORIES}:
        return COCO_2017
    return f"{EMBEDDED if drawn else 'custom'}-{digest_of(dict(digests))[:8]}"
