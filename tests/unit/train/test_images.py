"""What is trained on is the image that was looked at, and one that cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg

from qatval.data.shapes import draw_dataset
from qatval.data.subset import build_subset
from qatval.train.dataset import SubsetDataset, UnreadableImageError


@pytest.fixture
def dataset(tmp_path: Path) -> SubsetDataset:
    draw_dataset(tmp_path / "shapes", train_images=2, val_images=2, size=64)
    subset = build_subset(
        tmp_path / "shapes",
        train_images=None,
        val_images=None,
        seed=0,
        cache_dir=tmp_path / "cache",
    )
    args = get_cfg(overrides={"task": "detect", "mode": "train", "imgsz": 64})
    return SubsetDataset(subset.train, subset.class_names, args, batch=1)


@pytest.mark.parametrize("content", [b"", b"gone bad", None], ids=["empty", "other", "gone"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line(
    dataset: SubsetDataset, content: bytes | None, workers: int
) -> None:
    image = Path(dataset.im_files[1])
    image.unlink()
    if content is not None:
        image.write_bytes(content)
    loader = DataLoader(dataset, num_workers=workers, collate_fn=SubsetDataset.collate_fn)
    with pytest.raises(UnreadableImageError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{image}: cannot be decoded; 'qatval dataset check")
    assert "\n" not in str(caught.value)


def test_an_array_beside_an_image_is_neither_read_nor_removed(dataset: SubsetDataset) -> None:
    whole = dataset.load_image(0)[0]
    planted = Path(dataset.im_files[0]).with_suffix(".npy")
    for content in (np.zeros_like(whole).tobytes(), b"no array"):
        if content == b"no array":
            planted.write_bytes(content)
        else:
            np.save(planted, np.zeros_like(whole))
        dataset.ims[0] = None
        np.testing.assert_array_equal(dataset.load_image(0)[0], whole)
        assert planted.exists()
