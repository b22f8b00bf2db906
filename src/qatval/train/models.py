"""Detection models: building them, and reading and writing their checkpoints safely.

Two kinds of file exist. A ``.pt`` file is a pickle, which means untrusted input: nothing in it runs
(`qatval.train.checkpoints`). What qatval writes itself is safetensors: float32 tensors and JSON
metadata, nothing to execute and nothing rounded to fp16, which would move weights that sit on a
rounding threshold to the next code.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel, guess_model_scale
from ultralytics.utils import ROOT, YAML

from qatval.core.classes import ClassMatch, match_classes
from qatval.core.detectors import detector_of
from qatval.core.errors import QatvalError, UsageError, quoted
from qatval.core.files import atomic_write
from qatval.core.presets import refuse_unknown_model
from qatval.core.quantization import Quantization
from qatval.quant.integer import blank_integer_layer
from qatval.quant.layers import insert_quantizers
from qatval.train.checkpoints import Layer, SavedModel, read_torch_file
from qatval.train.tensor_files import read_metadata, read_tensors

# What convolutions on a CPU, and on a GPU in mixed precision, would turn weights and images into
# at every step. On a GPU under Windows Ultralytics measured steps three times as long with it.
MEMORY_FORMAT = torch.contiguous_format if sys.platform == "win32" else torch.channels_last

Kind = Literal["float", "latent", "integer"]


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint that qatval wrote, or a stranger.

    Attributes:
        kind: ``"float"``: an FP32 model; ``"latent"``: a fake-quantized one with its latent
            weights and scales; ``"integer"``: weight codes and scales, as deployed.
        architecture: Ultralytics' model file, e.g. ``"yolov10n.yaml"``.
        class_names: Classes in the order of the head's outputs.
        quantization: Of the model, None for a float one.

    Raises:
        UsageError: If no variant has the architecture, the class names are beyond the bounds of
            `refuse_unknown_model`, or latent weights come without their quantization.
    """

    kind: Kind
    architecture: str
    class_names: tuple[str, ...]
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        refuse_unknown_model(self.architecture, self.class_names)
        if self.kind == "latent" and self.quantization is None:
            raise UsageError("latent weights need the quantization that they were trained with")


def build_model(architecture: str, class_names: Sequence[str]) -> DetectionModel:
    """Return a freshly initialised model that answers as its family is scored.

    Its weights lie in memory as the images of `SubsetDataset` do, channels last.

    Raises:
        UsageError: If no variant has the architecture, or the class names are beyond the bounds of
            `refuse_unknown_model`.
    """
    refuse_unknown_model(architecture, class_names)
    model = DetectionModel(_definition(architecture), nc=len(class_names), verbose=False)
    model.names = dict(enumerate(class_names))
    detector_of(architecture).prepare(model)
    for parameter in model.parameters():
        # Of a 1x1 or a depthwise convolution the weight is in order as it is. Module.to would give
        # it other strides, which Brevitas' quantizers do not keep: the next layer's kernel, and
        # with it the last bits, would depend on who quantizes.
        if parameter.dim() == 4 and not parameter.is_contiguous(memory_format=MEMORY_FORMAT):
            parameter.data = parameter.contiguous(memory_format=MEMORY_FORMAT)
    return model


def _definition(architecture: str) -> dict[str, Any]:
    """Return Ultralytics' own model file of this name, as its models read it.

    Ultralytics itself would rather take a file of that name in the current folder, and evaluates
    what that says of activations.
    """
    of_all_sizes = re.sub(r"(\d)[a-z]\.yaml$", r"\1.yaml", architecture)
    shipped = {file.name: file for file in (ROOT / "cfg" / "models").rglob("*.yaml")}
    definition: dict[str, Any] = YAML.load(shipped.get(architecture) or shipped[of_all_sizes])
    return {**definition, "scale": guess_model_scale(architecture), "yaml_file": architecture}


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Write a model's tensors and their metadata in one step."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"qatval": json.dumps(msgspec.to_builtins(info))}
    atomic_write(path, safetensors.torch.save(tensors, metadata))


def read_info(path: Path) -> CheckpointInfo:
    """Read the metadata of a checkpoint that qatval wrote.

    Raises:
        QatvalError: If the file is missing, damaged, not from qatval, or says what no preset may.
    """
    try:
        return msgspec.json.decode(read_metadata(path)["qatval"], type=CheckpointInfo)
    # A JSON text nested too deep is a RecursionError.
    except (KeyError, msgspec.DecodeError, RecursionError) as error:
        raise QatvalError(
            f"{path} holds no qatval metadata: expected a checkpoint that qatval wrote"
        ) from error
    except UsageError as error:
        raise QatvalError(
            f"{path} is of no model that qatval builds: {error}; give another checkpoint"
        ) from error


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> DetectionModel:
    """Rebuild a model that `save_checkpoint` wrote: the same tensors, hence the same mAP.

    Raises:
        QatvalError: If the file is missing, damaged, or does not fit its own metadata.
    """
    info = read_info(path)
    tensors = read_tensors(path)
    model = build_model(info.architecture, info.class_names)
    if info.kind == "latent":
        assert info.quantization is not None
        insert_quantizers(model, info.quantization)
    elif info.kind == "integer":
        for name, module in list(model.named_modules()):
            scale = tensors.get(f"{name}.scale")
            if isinstance(module, nn.Conv2d) and scale is not None:
                # QC's fold may have given the layer a scale per channel: that follows the file.
                if scale.shape not in ((), (module.out_channels, 1, 1, 1)):
                    raise QatvalError(
                        f"{path} is damaged: expected one scale for '{name}' or one per output "
                        f"channel, got the shape {tuple(scale.shape)}; copy it again"
                    )
                rounded = f"{name}.input_scale" in tensors
                layer = blank_integer_layer(module, scale.float(), quantized_input=rounded)
                model.set_submodule(name, layer)
        model.requires_grad_(False)
    _load_strictly(model, tensors, path)
    return model.to(device).eval()


def _load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        example = f"no '{missing[0]}'" if missing else f"an unknown {quoted(surplus[0])}"
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
    """Load the FP32 model to fine-tune; as `load_matched`, which says more."""
    return load_matched(path, architecture, class_names)[0]


def load_matched(
    path: Path, architecture: str, class_names: Sequence[str]
) -> tuple[DetectionModel, ClassMatch]:
    """Load the FP32 model to fine-tune, from a ``.pt`` or a file of qatval's own.

    Its classes are put in the dataset's order: the head's rows are looked up by name, which moves
    numbers and changes none.

    Args:
        path: The checkpoint. A ``.pt`` is never trusted: nothing in it runs.
        architecture: Ultralytics' model file that the checkpoint must fit.
        class_names: The dataset's classes; the checkpoint must have the same, in any order.

    Returns:
        The model, and how its classes were found in the file.

    Raises:
        QatvalError: If the file is missing, truncated, damaged, refused (naming the offending
            class), an export, fused, of another architecture, with other classes or with weights
            that are not finite (naming the tensor).
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
        saved = SavedModel(read_tensors(path), info.class_names)
    elif path.suffix in (".pt", ".pth"):
        saved = read_torch_file(path)
    else:
        raise QatvalError(f"{path}: expected a .pt or .safetensors checkpoint")
    model = build_model(architecture, class_names)
    _refuse_fused(model, saved.tensors, path)
    saved, match = _in_order_of(class_names, saved, detector_of(architecture).class_layers, path)
    _load_strictly(model, saved.tensors, path)
    _refuse_other_layers(model, saved.layers, path)
    _refuse_not_finite(model, path)
    return model.eval(), match


def _in_order_of(
    class_names: Sequence[str], saved: SavedModel, layers: str, path: Path
) -> tuple[SavedModel, ClassMatch]:
    """Return the weights with the rows of `layers`, one a class, in the order of the dataset."""
    rows = {
        name
        for name in saved.tensors
        if fnmatchcase(name.rpartition(".")[0], layers) and saved.tensors[name].dim() > 0
    }
    classes = next((len(saved.tensors[name]) for name in sorted(rows)), None)
    if classes is not None and classes != len(class_names):
        repeated = sorted({name for name in class_names if class_names.count(name) > 1})
        raise QatvalError(
            f"{path} detects {classes} classes, the dataset has {len(class_names)}"
            + (f", {repeated[0]!r} among them more than once" if repeated else "")
            + ": give a checkpoint that was trained on this dataset's classes"
            + (", or name each of them once" if repeated else "")
        )
    names = saved.class_names
    try:
        match = match_classes(
            class_names, names if names and len(names) == len(class_names) else None
        )
    except QatvalError as error:
        raise QatvalError(f"{path} {error}") from error
    order = list(match.rows)
    if order != sorted(order):
        moved = {name: saved.tensors[name][order] for name in rows}
        saved = replace(saved, tensors={**saved.tensors, **moved})
    return saved, match


def _refuse_fused(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with BatchNorm folded into them, of which nothing can be unfolded."""
    statistics = ".running_mean"
    normalised = [name for name in model.state_dict() if name.endswith(statistics)]
    folded = [n for n in normalised if n.replace(f".bn{statistics}", ".conv.bias") in tensors]
    if folded and not any(name.endswith(statistics) for name in tensors):
        raise QatvalError(
            f"{path} is fused: {len(folded)} BatchNorm layers are folded into convolutions, and "
            "only a model that has them can be fine-tuned; give the checkpoint that its training "
            "left, saved before fuse() or an export"
        )


def _refuse_other_layers(model: nn.Module, layers: Mapping[str, Layer], path: Path) -> None:
    """Refuse a file whose tensors fit a model that computes something else with them."""
    for name, module in model.named_modules():
        saved, kind = layers.get(name), type(module).__name__
        if saved is None:
            continue
        if saved.kind != kind and saved.kind != f"Sync{kind.removesuffix('2d')}":
            raise QatvalError(
                f"{path} is of another architecture: its '{name}' is {saved.kind}, expected "
                f"{kind}; give a checkpoint of the variant as Ultralytics defines it"
            )
        for setting, value in saved.settings.items():
            if (expected := getattr(module, setting, value)) != value:
                raise QatvalError(
                    f"{path} is of another architecture: '{name}' has {setting} {value!r}, "
                    f"expected {expected!r}; give a checkpoint of the variant as Ultralytics "
                    "defines it"
                )


def _refuse_not_finite(model: nn.Module, path: Path) -> None:
    """Refuse weights that no training, and no verdict about one, can start from."""
    for name, tensor in model.state_dict().items():
        for what, found in (("NaN", tensor.isnan()), ("infinite values", tensor.isinf())):
            if count := int(found.sum()):
                raise QatvalError(
                    f"{path} is damaged: '{name}' holds {count} {what} among {tensor.numel()} "
                    "values; expected numbers, use another checkpoint"
                )


def starting_model(
    path: Path | None, architecture: str, class_names: Sequence[str], spec: Quantization | None
) -> DetectionModel:
    """Return the model that a training starts from.

    Arguments and errors are those of `load_pretrained`, but that ``path`` is None to start from
    scratch, or a checkpoint whose quantizers are inserted already; ``spec`` is the quantization to
    insert where it is not, None to train in float.
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
