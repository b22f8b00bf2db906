"""Detection models: building them, and reading and writing their checkpoints safely.

Two kinds of file exist. A ``.pt`` file is a pickle, which means untrusted input: it is loaded
under an allowlist of model classes and nothing in it runs. What qatval writes itself is
safetensors: float32 tensors and JSON metadata, nothing to execute and nothing rounded to fp16,
which would move weights that sit on a rounding threshold to the next code.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel, torch_safe_load

from qatval.core.detectors import detector_of
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write
from qatval.core.quantization import Quantization
from qatval.quant.integer import blank_integer_layer
from qatval.quant.layers import insert_quantizers

# What convolutions on a CPU, and on a GPU in mixed precision, would turn weights and images into
# at every step. On a GPU under Windows Ultralytics measured steps three times as long with it.
MEMORY_FORMAT = torch.contiguous_format if sys.platform == "win32" else torch.channels_last

Kind = Literal["float", "latent", "integer"]


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint that qatval wrote.

    Attributes:
        kind: ``"float"``: an FP32 model; ``"latent"``: a fake-quantized one with its latent
            weights and scales; ``"integer"``: weight codes and scales, as deployed.
        architecture: Ultralytics' model file, e.g. ``"yolov10n.yaml"``.
        class_names: Classes in the order of the head's outputs.
        quantization: Of the model, None for a float one.
    """

    kind: Kind
    architecture: str
    class_names: tuple[str, ...]
    quantization: Quantization | None = None


def build_model(architecture: str, class_names: Sequence[str]) -> DetectionModel:
    """Return a freshly initialised model that answers as its family is scored.

    Its weights lie in memory as the images of `SubsetDataset` do, channels last.

    Raises:
        UsageError: If no family knows the architecture.
    """
    model = DetectionModel(architecture, nc=len(class_names), verbose=False)
    model.names = dict(enumerate(class_names))
    detector_of(architecture).prepare(model)
    for parameter in model.parameters():
        # Of a 1x1 or a depthwise convolution the weight is in order as it is. Module.to would give
        # it other strides, which Brevitas' quantizers do not keep: the next layer's kernel, and
        # with it the last bits, would depend on who quantizes.
        if parameter.dim() == 4 and not parameter.is_contiguous(memory_format=MEMORY_FORMAT):
            parameter.data = parameter.contiguous(memory_format=MEMORY_FORMAT)
    return model


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Write a model's tensors and their metadata in one step."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {
        "kind": info.kind,
        "architecture": info.architecture,
        "class_names": list(info.class_names),
        "quantization": msgspec.to_builtins(info.quantization),
    }
    atomic_write(path, safetensors.torch.save(tensors, {"qatval": json.dumps(metadata)}))


def read_info(path: Path) -> CheckpointInfo:
    """Read the metadata of a checkpoint that qatval wrote.

    Raises:
        QatvalError: If the file is missing, damaged, or not from qatval.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["qatval"])
        return CheckpointInfo(
            kind=metadata["kind"],
            architecture=metadata["architecture"],
            class_names=tuple(metadata["class_names"]),
            quantization=msgspec.convert(metadata["quantization"], Quantization | None),
        )
    except OSError as error:
        raise QatvalError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise QatvalError(
            f"{path} is damaged: expected a whole safetensors file ({error}); copy it again"
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError, msgspec.ValidationError) as error:
        raise QatvalError(
            f"{path} holds no qatval metadata: expected a checkpoint that qatval wrote"
        ) from error


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> DetectionModel:
    """Rebuild a model that `save_checkpoint` wrote: the same tensors, hence the same mAP.

    Raises:
        QatvalError: If the file is missing, damaged, or does not fit its own metadata.
    """
    info = read_info(path)
    tensors = safetensors.torch.load_file(path)
    model = build_model(info.architecture, info.class_names)
    if info.kind == "latent":
        assert info.quantization is not None
        insert_quantizers(model, info.quantization)
    elif info.kind == "integer":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Conv2d) and f"{name}.scale" in tensors:
                # QC's fold may have given the layer a scale per channel: that follows the file.
                layer = blank_integer_layer(
                    module,
                    tensors[f"{name}.scale"],
                    quantized_input=f"{name}.input_scale" in tensors,
                )
                model.set_submodule(name, layer)
        model.requires_grad_(False)
    _load_strictly(model, tensors, path)
    return model.to(device).eval()


def _load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        example = f"no '{missing[0]}'" if missing else f"an unknown '{surplus[0]}'"
        raise QatvalError(
            f"{path} is of another architecture: {len(missing)} tensors are missing and "
            f"{len(surplus)} unknown ({example}); give the checkpoint of the variant asked for"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise QatvalError(
                f"{path} is of another size: '{name}' has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(tensor.shape)}; give the checkpoint of the variant asked for"
            )
    # Not by load_state_dict: of a quantized model Brevitas would make every quantizer anew.
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def load_pretrained(path: Path, architecture: str, class_names: Sequence[str]) -> DetectionModel:
    """Load the FP32 model to fine-tune, from an Ultralytics ``.pt`` or a file of qatval's own.

    Args:
        path: The checkpoint. A ``.pt`` is never trusted: only tensors, plain data and known
            model classes are reconstructed from it.
        architecture: Ultralytics' model file that the checkpoint must fit.
        class_names: The dataset's classes; the checkpoint must have as many.

    Raises:
        QatvalError: If the file is missing, not a checkpoint, refused (naming the offending
            class), truncated, of another architecture, with another number of classes or with
            weights that are not finite (naming the tensor).
    """
    if not path.is_file():
        raise QatvalError(
            f"checkpoint {path} not found: download the official file with "
            "'qatval checkpoints fetch', or give one with --checkpoint"
        )
    if path.suffix == ".safetensors":
        info = read_info(path)
        if info.kind != "float":
            raise QatvalError(
                f"{path} holds {info.kind} weights: expected an FP32 checkpoint to fine-tune"
            )
        tensors = safetensors.torch.load_file(path)
    elif path.suffix == ".pt":
        tensors = _read_ultralytics(path)
    else:
        raise QatvalError(f"{path}: expected a .pt or .safetensors checkpoint")
    rows = detector_of(architecture).class_rows
    classes = [tensor.shape[0] for name, tensor in tensors.items() if fnmatchcase(name, rows)]
    if classes and classes[0] != len(class_names):
        raise QatvalError(
            f"{path} detects {classes[0]} classes, the dataset has {len(class_names)}: give a "
            "checkpoint that was trained on this dataset's classes"
        )
    model = build_model(architecture, class_names)
    _load_strictly(model, tensors, path)
    _refuse_not_finite(model, path)
    return model.eval()


def _refuse_not_finite(model: nn.Module, path: Path) -> None:
    """Refuse weights that no training, and no verdict about one, can start from."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise QatvalError(
                f"{path} is damaged: '{name}' holds {_not_finite(tensor)}; expected numbers, use "
                "another checkpoint"
            )


def _not_finite(tensor: Tensor) -> str:
    count, what = int(tensor.isnan().sum()), "NaN"
    if not count:
        count, what = int(tensor.isinf().sum()), "infinite values"
    return f"{count} {what} among {tensor.numel()} values"


def starting_model(
    path: Path | None, architecture: str, class_names: Sequence[str], spec: Quantization | None
) -> DetectionModel:
    """Return the model that a training starts from.

    Args:
        path: FP32 checkpoint, or one whose quantizers are inserted already, or None to start from
            scratch.
        architecture: Ultralytics' model file.
        class_names: The dataset's classes.
        spec: Quantization to insert where it is not, or None to train in float.

    Raises:
        QatvalError: As `load_pretrained` and `load_checkpoint` do.
    """
    if path is None:
        model = build_model(architecture, class_names)
    elif spec is not None and path.suffix == ".safetensors" and read_info(path).kind == "latent":
        return load_checkpoint(path)
    else:
        model = load_pretrained(path, architecture, class_names)
    if spec is not None:
        insert_quantizers(model, spec)
    return model


def _read_ultralytics(path: Path) -> dict[str, Tensor]:
    """Return the float32 tensors of a ``.pt`` file without running anything in it."""
    try:
        checkpoint, _ = torch_safe_load(str(path.resolve()), safe_only=True)
    except Exception as error:
        # Ultralytics wraps what torch says; the chain's first message names the class.
        raise QatvalError(_refusal(path, error)) from error
    model: Any = None
    if isinstance(checkpoint, dict):
        model = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(model, nn.Module):
        raise QatvalError(
            f"{path} is not an Ultralytics checkpoint: expected a model under 'ema' or 'model'"
        )
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }


def _refusal(path: Path, error: BaseException) -> str:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(str(link) for link in chain)
    if match := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"{path} is refused: it refers to '{match[1]}', which is not part of a YOLO "
            "checkpoint, and loading it could run code; use an official checkpoint"
        )
    if match := re.search(r"unsafe getattr\(.*?\)", text):
        return f"{path} is refused: it asks for {match[0]}; use an official checkpoint"
    if match := re.search(r"(?:No module named|Can't get attribute) '([\w.]+)'", text):
        return f"{path} is refused: it refers to '{match[1]}', which does not exist here"
    return (
        f"{path} is not a loadable checkpoint: empty, truncated or another kind of file; "
        "download it again"
    )
