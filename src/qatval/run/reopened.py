"""A finished run opened again: its validation images, its model and what that was rounded from.

Files of the run are held to the digests that its summary has, the data and the checkpoint to those
that tell what they are: they may lie elsewhere now.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from qatval.core.checkout import located
from qatval.core.digests import FileDigest
from qatval.core.errors import QatvalError
from qatval.core.files import inside, read_regular, sha256_of
from qatval.core.quantization import FLOAT_MODE, Quantization
from qatval.core.summary import RunSummary
from qatval.data.coco import coco_files
from qatval.data.subset import Subset, build_subset
from qatval.deploy.export.delivered import delivered
from qatval.quant.integer import integer_layers
from qatval.quant.layers import insert_quantizers
from qatval.quant.quantized_conv import quantized_layers
from qatval.train.models import load_checkpoint, load_pretrained, read_info

_LATENT = "last.safetensors"
"""Beside the delivered weights: those of the training that they are the codes of."""

_TRAIN_IMAGES = 64
"""To measure BatchNorm statistics on. The draw of a run that was given no list contains them."""
_MOST_LIST_BYTES = 2**26


def quantized_run(root: Path) -> RunSummary:
    """Return the summary of a run that delivered a quantized model.

    Raises:
        QatvalError: If it did not, or its summary cannot be read.
    """
    summary = delivered(root).summary
    if summary.quantization.mode == FLOAT_MODE:
        raise QatvalError(
            f"{root}: nothing is quantized in an FP32 control ({summary.method.variant}); give a "
            "run of a quantized method"
        )
    return summary


def scored_images(
    root: Path,
    summary: RunSummary,
    coco_root: Path | None,
    images: int | None,
    cache_dir: Path | None,
    folder: Path,
) -> tuple[Subset, int]:
    """Return the run's validation images, or the first of them, and how many the run had.

    Beside them are a few images of the training split.

    Args:
        root: The run root.
        summary: Of the run.
        coco_root: Where the data are, None for where they were.
        images: How many of the validation images, None for all.
        cache_dir: Where subsets are kept, None for the default.
        folder: For a file that nobody needs afterwards.

    Raises:
        QatvalError: If the data are missing or not those of the run.
    """
    there = coco_root or Path(summary.dataset.coco_root)
    if not there.is_dir():
        raise QatvalError(
            f"{there}: the run's data are not there; name their folder with --coco-root, or draw "
            "the embedded ones again with 'qatval dataset shapes --out DIR'"
        )
    annotations = coco_files(there)["val"].annotations
    try:
        recorded = str((summary.dataset.identity or {})["annotations"]["val"])
    except (KeyError, TypeError) as error:
        raise QatvalError(
            f"{root}: its summary does not say what its data are (dataset.identity); give a run "
            "of a newer qatval"
        ) from error
    if (found := sha256_of(annotations)) != recorded:
        raise QatvalError(
            f"{annotations} is not what the run was scored on: expected the SHA-256 "
            f"{recorded:.12}..., got {found:.12}...; name the run's data with --coco-root"
        )
    listed = _own(root, summary, "dataset/val_images.txt")
    content = read_regular(listed, _MOST_LIST_BYTES, expected="the run's validation images")
    ids = content.splitlines(keepends=True)
    chosen = folder / listed.name
    chosen.write_bytes(b"".join(ids[:images]))
    subset = build_subset(
        there,
        train_images=_TRAIN_IMAGES,
        val_images=None,
        seed=summary.training.seed,
        image_list=chosen,
        cache_dir=cache_dir,
    )
    return subset, len(ids)


def _own(root: Path, summary: RunSummary, name: str) -> Path:
    """Return a file that the run left, if it is still the one that it left."""
    file = inside(root, name)
    recorded = (summary.files or {}).get(Path(name).as_posix())
    if not file.is_file():
        raise QatvalError(f"{file}: expected a file that the run left; copy the run whole")
    if recorded is not None and FileDigest.of(file) != recorded:
        raise QatvalError(f"{file}: was changed after the run wrote it; copy the run again")
    return file


def models_of(
    root: Path, summary: RunSummary, checkpoint: Path | None
) -> tuple[Quantization, nn.Module, nn.Module]:
    """Return the quantization, the delivered model and the latent weights of its codes.

    The latent weights are those that the training ended with, raw or averaged as the method takes
    them; of a method that trains nothing, the checkpoint's.

    Raises:
        QatvalError: If a file is missing or not what it was.
    """
    assert summary.artifacts.weights is not None
    weights = _own(root, summary, summary.artifacts.weights)
    info = read_info(weights)
    if info.kind != "integer" or info.quantization is None:
        raise QatvalError(f"{weights}: expected integer codes, got {info.kind} weights")
    if summary.method.training == "none":
        source = _checkpoint(summary, checkpoint)
        latent = load_pretrained(source, info.architecture, info.class_names)
        insert_quantizers(latent, info.quantization)
    else:
        source = _own(root, summary, str(Path(summary.artifacts.weights).with_name(_LATENT)))
        latent = load_checkpoint(source)
    delivered = load_checkpoint(weights)
    shapes = [
        {n: tuple(layer.weight.shape) for n, layer in layers}
        for layers in (integer_layers(delivered).items(), quantized_layers(latent))
    ]
    if shapes[0] != shapes[1]:
        raise QatvalError(f"{source} is of another model than {weights}: copy the run again")
    return info.quantization, delivered, latent


def _checkpoint(summary: RunSummary, checkpoint: Path | None) -> Path:
    """Return the FP32 checkpoint that the run rounded, held to its digest."""
    path = checkpoint or located(Path(summary.model.checkpoint))
    if not path.is_file():
        raise QatvalError(
            f"{path}: the checkpoint that the run rounded is not there; name it with --checkpoint"
        )
    recorded = summary.model.checkpoint_sha256
    if recorded is not None and (found := sha256_of(path)) != recorded:
        raise QatvalError(
            f"{path} is not the checkpoint that the run rounded: expected the SHA-256 "
            f"{recorded:.12}..., got {found:.12}...; name it with --checkpoint"
        )
    return path
