"""The failure on record made small: W4 from scratch with Brevitas' decoupled quantizer under SGD.

    python benchmarks/record.py --out DIR [--epochs 120]              # as on record
    python benchmarks/record.py --out DIR --float                     # its FP32 control
    python benchmarks/record.py --out DIR --weight-decay 0.002 --horizon 2500

The training is what ``docs/collapse.md`` describes: every convolution but the DFL's quantized by
``Int4WeightPerTensorFloatDecoupled``, Ultralytics' SGD, warm-up and augmentation, its weight decay
on the scales too. Drawn shapes at 64 px take the place of COCO, yolo10n that of yolo10m. Some
averages of one training are scored after every epoch, so that they differ in nothing else; each
has a ``results.csv`` under DIR that ``qatval judge`` reads, and ``scales.csv`` has the scales.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from brevitas.nn import QuantConv2d
from brevitas.quant.scaled_int import Int4WeightPerTensorFloatDecoupled
from torch import Tensor, nn

from qatval.core.environment import prepare_process
from qatval.core.option_types import positive, seed
from qatval.data.shapes import draw_dataset
from qatval.data.subset import build_subset
from qatval.quant import methods
from qatval.quant.averaging import WeightAverage
from qatval.quant.batchnorm import reestimate
from qatval.train.calibration import CalibrationImages
from qatval.train.evaluation import same_randomness
from qatval.train.loop import ResumableTrainer
from qatval.train.trainer import QatTrainer
from qatval.train.trajectory import TrainingPlan, write

LARGEST = 7
"""Code of a weight, 4 bits, narrow range."""

FALLEN = 0.5


class DecoupledConv(QuantConv2d):  # type: ignore[misc]
    """Brevitas' convolution, its weights quantized in one pass instead of some forty modules."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            weight = self.quant_weight().value
        else:
            weight = DecoupledFakeQuantization.apply(self.weight, value(self))
        return self._conv_forward(x, weight, self.bias)


class DecoupledFakeQuantization(torch.autograd.Function):
    """What `Int4WeightPerTensorFloatDecoupled` computes, with its gradients.

    Codes come from a norm of the weights, ``w / p`` with ``p = rms(max|w| per channel) / 7``, their
    size from a parameter: ``clamp(round(w / p), -7, 7) * |value| / 7``. Gradients pass rounding and
    clamp, and reach the weights through ``p`` as well.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        rows = weight.flatten(1)
        peaks, where = rows.abs().max(dim=1)
        rms = peaks.norm() / math.sqrt(len(peaks))
        codes = (weight / (rms / LARGEST)).round_().clamp_(-LARGEST, LARGEST)
        ctx.save_for_backward(weight, value, peaks, where, rms, codes)
        return codes * (value.abs() / LARGEST)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, value, peaks, where, rms, codes = ctx.saved_tensors
        sign = 1.0 if value >= 0 else -1.0
        of_value = (gradient * codes).sum() * (sign / LARGEST)
        of_weight = gradient * (value.abs() / rms)
        of_rms = -(of_weight * weight).sum() / rms
        of_peaks = of_rms * peaks / (rms * len(peaks))
        rows = of_weight.flatten(1)
        places = where[:, None]
        rows.scatter_add_(1, places, of_peaks[:, None] * weight.flatten(1).gather(1, places).sign())
        return rows.view(weight.shape), of_value.view(value.shape)


def value(layer: nn.Module) -> Tensor:
    """Return the signed parameter behind a layer's scale."""
    found: Tensor = layer.weight_quant.tensor_quant.scaling_impl.value  # type: ignore[union-attr]
    return found


def quantize(model: nn.Module) -> None:
    """Put Brevitas' quantized convolutions in the place of all but the DFL's."""
    for parent_name, parent in list(model.named_modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is not nn.Conv2d or parent_name.endswith("dfl"):
                continue
            quantized = DecoupledConv(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                bias=conv.bias is not None,
                weight_quant=Int4WeightPerTensorFloatDecoupled,
            )
            for parameter, tensor in conv.named_parameters():
                quantized.get_parameter(parameter).data = tensor.detach().contiguous().clone()
            with torch.no_grad():
                quantized.quant_weight()  # sets the scale, which has no place in a state before
            setattr(parent, name, quantized)


def check(layers: dict[str, DecoupledConv]) -> None:
    """Hold the one pass to Brevitas' own forward and gradients, for either sign of the scale."""
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        for sign in (1.0, -1.0):
            with torch.no_grad():
                value(layer).mul_(sign)
            gradient = torch.randn(layer.weight.shape, generator=generator)
            inputs = (layer.weight, value(layer))
            ours = DecoupledFakeQuantization.apply(*inputs)
            theirs = layer.quant_weight().value
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(
                torch.autograd.grad(ours, inputs, gradient),
                torch.autograd.grad(theirs, inputs, gradient),
                rtol=1e-3,
                atol=1e-4,
            )
            with torch.no_grad():
                value(layer).mul_(sign)


@dataclass(frozen=True)
class Setting:
    """What `RecordTrainer` does and QatTrainer cannot be told.

    Attributes:
        out: Where its results go.
        low_bit: Whether weights are quantized.
        horizon: Of the average, in steps; its ramp takes a fifth, as Ultralytics' 10,000 and 2,000.
        decayed_scales: Whether weight decay acts on scales, as Ultralytics has it.
    """

    out: Path
    low_bit: bool
    horizon: int
    decayed_scales: bool


class RecordTrainer(QatTrainer):
    """Trains as on record and scores several averages of the same training."""

    def __init__(self, setting: Setting, overrides: dict[str, Any]) -> None:
        """Keep what is peculiar, and read the plan."""
        self._setting = setting
        self._best: dict[str, float] = {}
        super().__init__(overrides=overrides)

    def setup_model(self) -> None:
        super().setup_model()
        if self._setting.low_bit:
            quantize(self.model)
            check(self._layers(self.model))

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        builder = ResumableTrainer if self._setting.decayed_scales else QatTrainer
        return builder.build_optimizer(self, model, *args, **kwargs)

    def _setup_train(self) -> None:
        super()._setup_train()
        horizon = self._setting.horizon
        self.ema = WeightAverage(self.model, 1.0 - 1.0 / horizon, horizon / 5.0)
        self._values = {name: value(layer) for name, layer in self._layers(self.model).items()}
        self._magnitudes = {name: tensor.detach().abs() for name, tensor in self._values.items()}
        self._start = {name: tensor.detach().clone() for name, tensor in self._values.items()}
        with same_randomness():
            self._images = CalibrationImages(
                self.subset, 128, vars(self.args), seed=self.args.seed, device=self.device
            )
        self._began = time.monotonic()

    @staticmethod
    def _layers(model: nn.Module) -> dict[str, DecoupledConv]:
        return {n: m for n, m in model.named_modules() if isinstance(m, DecoupledConv)}

    def optimizer_step(self) -> None:
        super().optimizer_step()
        if self._values:
            averages, values = list(self._magnitudes.values()), list(self._values.values())
            with torch.no_grad():
                torch._foreach_lerp_(
                    averages, torch._foreach_abs(values), 1.0 - self.ema.effective_decay
                )

    def _arms(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield what is scored: the raw weights, Ultralytics' average, and that with one change."""
        yield "raw", self.model
        yield "averaged", self.ema.ema
        yield "averaged-fresh", self._fresh(self.ema.ema)
        if self._values:
            magnitude = self._with_scales(self._magnitudes)
            yield "magnitudes", magnitude
            yield "magnitudes-fresh", self._fresh(magnitude)
            yield "scales-not-averaged", self._with_scales(self._start)

    def _with_scales(self, scales: dict[str, Tensor]) -> nn.Module:
        changed = deepcopy(self.ema.ema)
        with torch.no_grad():
            for name, layer in self._layers(changed).items():
                value(layer).copy_(scales[name])
        return changed

    def _fresh(self, model: nn.Module) -> nn.Module:
        with same_randomness():
            return reestimate(deepcopy(model), self._images.pixels())

    def validate(self) -> tuple[dict[str, float], float]:
        if self.epoch == 0:  # Brevitas sets the scales of an average when it is first scored
            for name, layer in self._layers(self.ema.ema).items():
                peaks = layer.weight.flatten(1).abs().amax(1)
                self._start[name].fill_(peaks.norm() / math.sqrt(len(peaks)))
        arms = dict(self._arms())
        evaluations = self._evaluator.evaluate_together(list(arms.values()), with_losses=True)
        self._scored = dict(zip(arms, evaluations, strict=True))
        return dict(evaluations[1].metrics), evaluations[1].value

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        losses = {k: float(v) for k, v in metrics.items() if k.startswith("train/")}
        for arm, evaluation in self._scored.items():
            val = {f"val/{name}": loss for name, loss in evaluation.losses.items()}
            row = {"epoch": self.epoch + 1, **losses, **evaluation.metrics, **val}
            self._append(self._setting.out / arm / "results.csv", row)
        for name, tensor in self._values.items():
            average = float(value(self._layers(self.ema.ema)[name]))
            row = {"epoch": self.epoch + 1, "layer": name, "raw": float(tensor.detach())}
            row |= {"signed": average, "magnitude": float(self._magnitudes[name])}
            self._append(self._setting.out / "scales.csv", row)
        self._tell(sum(losses.values()))

    def save_model(self) -> bool:
        values = {arm: evaluation.value for arm, evaluation in self._scored.items()}
        fallen = any(values[arm] < FALLEN * self._best.get(arm, 0.0) for arm in ("raw", "averaged"))
        for arm, number in values.items():
            self._best[arm] = max(number, self._best.get(arm, 0.0))
        if fallen:
            models = {"raw": self.model, "averaged": self.ema.ema}
            states = {which: model.state_dict() for which, model in models.items()}
            (self._setting.out / "falls").mkdir(exist_ok=True)
            torch.save(
                {**states, "magnitudes": self._magnitudes},
                self._setting.out / "falls" / f"{self.epoch + 1}.pt",
            )
        return True

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _tell(self, loss: float) -> None:
        values = {arm: f"{evaluation.value:.4f}" for arm, evaluation in self._scored.items()}
        text = f"epoch {self.epoch + 1} ({self.ema.updates} steps): loss {loss:.3f}; "
        text += ", ".join(f"{arm} {number}" for arm, number in values.items())
        if self._values:
            layers = self._layers(self.ema.ema)
            shares = {n: float(value(layers[n]).abs() / m) for n, m in self._magnitudes.items()}
            worst = min(shares, key=lambda name: shares[name])
            negative = sum(float(tensor.detach()) < 0 for tensor in self._values.values())
            smallest = min(float(t.detach().abs()) for t in self._values.values())
            text += f"; {negative} scales below 0, smallest {smallest:.2e}"
            text += f", least signed/magnitude {shares[worst]:.3f} ({worst})"
        print(f"{text} [{(time.monotonic() - self._began) / 60:.1f} min]", flush=True)

    def interrupted(self) -> bool:
        return False

    def load_state(self) -> bool:
        return False

    def save_state(self) -> None:
        pass

    def finish(self, *, complete: bool) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--float", action="store_true", help="train in FP32")
    parser.add_argument("--decay-free", action="store_true", help="no weight decay on scales")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--horizon", type=positive, default=10_000, help="of the average, steps")
    parser.add_argument("--epochs", type=positive, default=120)
    parser.add_argument("--images", type=positive, default=2048, help="to train on")
    parser.add_argument("--imgsz", type=positive, default=64)
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--seed", type=seed, default=0)
    args = parser.parse_args()
    prepare_process()
    out = args.out.resolve()
    if (out / "raw").exists():
        parser.error(f"{out} has results already")
    data = out / "data"
    draw_dataset(data / "shapes", train_images=args.images, size=args.imgsz)
    subset = build_subset(
        data / "shapes",
        train_images=None,
        val_images=None,
        seed=args.seed,
        cache_dir=data / "cache",
    )
    averaging = methods.method("ema").averaging
    assert averaging is not None
    plan = TrainingPlan(
        subset=str(subset.directory),
        architecture="yolov10n.yaml",
        checkpoint=None,
        quantization=None,
        averaging=averaging,
        scored=("raw", "ema"),
        threads=torch.get_num_threads(),
    )
    arguments = {
        "optimizer": "SGD",
        "lr0": args.lr,
        "lrf": 0.8,  # where it stood when the record ends, at a quarter of its schedule
        "momentum": 0.937,
        "warmup_momentum": 0.8,
        "warmup_epochs": 3.0,
        "warmup_bias_lr": 0.1,
        "weight_decay": args.weight_decay,
        "nbs": args.batch,  # no accumulation, and weight decay as it is
        "batch": args.batch,
        "mosaic": 1.0,
        "close_mosaic": 0,
        "imgsz": args.imgsz,
        "epochs": args.epochs,
        "seed": args.seed,
        "device": "cpu",
        "workers": 0,
        "amp": False,
    }
    work = out / "work"
    work.mkdir(parents=True)
    write(work, plan)
    setting = Setting(
        out,
        low_bit=not args.float,
        horizon=args.horizon,
        decayed_scales=not args.decay_free,
    )
    fixed = {"task": "detect", "mode": "train", "data": "qatval", "val": True, "plots": False}
    place = {"model": plan.architecture, "project": str(work), "name": "training"}
    quiet = {"patience": 0, "verbose": False, "rect": False}
    RecordTrainer(setting, {**arguments, **fixed, **place, **quiet}).train()


if __name__ == "__main__":
    main()
