"""What a QAT step costs beside FP32, Brevitas and ModelOpt: yolo10n, 160 px, batch 16.

Weights to 4 bits, and weights and activations to 4 bits as Gupta & Asthana train them.

    python benchmarks/step.py [--rounds 15]
    python benchmarks/step.py --device 0 --imgsz 640 --amp      # on a GPU

Each peer is timed twice over: forward and backward alone, and the whole step as its trainer takes
it. Ultralytics' trainer clips, takes AdamW's step and averages with `ModelEMA`; on a GPU, and only
there, its weights lie channels last and its AdamW is fused. qatval's does both everywhere, and has
an FP32 step of its own. ModelOpt is measured where ``nvidia-modelopt`` and ``huggingface_hub`` are
installed, inserted by Ultralytics' own ``prepare_qat``. Peak memory is that of a process that takes
five steps and nothing else: resident on a CPU, allocated by torch on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from qatval.core.environment import peak_resident_mb, prepare_process

prepare_process()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from measure import publish, ratio, spread, table  # noqa: E402
from qatval.core.presets import quantization  # noqa: E402
from qatval.quant.averaging import WeightAverage  # noqa: E402
from qatval.quant.fused import fuse_quantization  # noqa: E402
from qatval.quant.layers import calibrate_activations, insert_quantizers  # noqa: E402
from qatval.quant.quantized_conv import quantized_layers, scale_parameters  # noqa: E402
from qatval.train.models import MEMORY_FORMAT, build_model  # noqa: E402

BATCH, CLASSES = 16, 80
Trainer = Literal["Ultralytics", "qatval"]


@dataclass(frozen=True)
class Peer:
    """What is timed.

    Attributes:
        quantizer: How it quantizes.
        trainer: Whose steps it takes.
        mode: Preset of `qatval.core.presets.quantization`, where the quantizer takes one.
    """

    quantizer: Literal["none", "qatval", "Brevitas", "Brevitas, statistics", "ModelOpt"]
    trainer: Trainer
    mode: str = "w4a16"


PEERS = {
    "FP32": Peer("none", "Ultralytics"),
    "FP32 in qatval": Peer("none", "qatval"),
    "qatval, W4 learned scale": Peer("qatval", "qatval"),
    "the same, `--no-fused`": Peer("Brevitas", "qatval"),
    "Brevitas, W4 learned scale": Peer("Brevitas", "Ultralytics"),
    "Brevitas, W4 scale from statistics": Peer("Brevitas, statistics", "Ultralytics"),
    "ModelOpt INT8 (Ultralytics `quantize=8`)": Peer("ModelOpt", "Ultralytics"),
    "qatval, W4A4, first and last layers at 8 bits": Peer("qatval", "qatval", "paper"),
    "Brevitas, W4A4, the same": Peer("Brevitas", "Ultralytics", "paper"),
}


def a_batch(
    imgsz: int, device: str | torch.device = "cpu", images: int = BATCH
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    boxes = 4 * images
    batch = {
        "img": torch.rand(images, 3, imgsz, imgsz, generator=generator),
        "batch_idx": torch.arange(images).repeat_interleave(4).float(),
        "cls": torch.randint(0, CLASSES, (boxes, 1), generator=generator).float(),
        "bboxes": torch.rand(boxes, 4, generator=generator) * 0.3 + 0.3,
    }
    batch["img"] = batch["img"].contiguous(memory_format=MEMORY_FORMAT)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def a_model(peer: Peer, batch: dict[str, Tensor], architecture: str = "yolov10n.yaml") -> nn.Module:
    """Build one peer's model; all start from the same weights."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import DEFAULT_CFG

    torch.manual_seed(0)
    model: Any = build_model(architecture, [str(n) for n in range(CLASSES)])
    model.args = get_cfg(DEFAULT_CFG)
    model.to(batch["img"].device)
    if peer.quantizer in ("qatval", "Brevitas"):
        insert_quantizers(model, quantization(peer.mode))
        calibrate_activations(model, [batch["img"]])
    elif peer.quantizer == "Brevitas, statistics":
        with_statistics(model)
    elif peer.quantizer == "ModelOpt":
        from ultralytics.utils.torch_utils import prepare_qat

        model = prepare_qat(model, [batch], lambda same: same, batches=1)
    if peer.quantizer == "qatval":
        fuse_quantization(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("dfl" not in name)
    if peer.trainer == "Ultralytics" and batch["img"].device.type == "cpu":
        model.to(memory_format=torch.contiguous_format)
    return model.train()  # type: ignore[no-any-return]


def with_statistics(model: nn.Module) -> None:
    """Insert Brevitas' own defaults for 4-bit weights, a scale from max|w| in each forward."""
    from brevitas.nn import QuantConv2d

    for name, conv in list(model.named_modules()):
        if type(conv) is nn.Conv2d and not name.endswith("dfl.conv"):
            layer = QuantConv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                stride=conv.stride,
                padding=conv.padding,
                groups=conv.groups,
                bias=conv.bias is not None,
                weight_bit_width=4,
                device=conv.weight.device,
            )
            layer.load_state_dict(conv.state_dict(), strict=False)
            model.set_submodule(name, layer)
    assert len(list(quantized_layers(model))) == 107


class Stepper:
    """Takes training steps with one peer; notes what forward and backward took of each."""

    def __init__(
        self,
        peer: Peer,
        imgsz: int,
        device: str = "cpu",
        *,
        amp: bool = False,
        images: int = BATCH,
        architecture: str = "yolov10n.yaml",
    ) -> None:
        from ultralytics.utils.torch_utils import ModelEMA

        self.batch = a_batch(imgsz, device, images)
        self.model = a_model(peer, self.batch, architecture)
        self.device = torch.device(self.batch["img"].device)
        own = peer.trainer == "qatval"
        if not own:
            self.batch["img"] = self.batch["img"].contiguous()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        fused = own or self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=fused)
        self.average: Any = None
        if own:
            scales = scale_parameters(self.model)
            self.average = WeightAverage(self.model, 0.9999, 2000.0, scales)
        elif peer.quantizer != "ModelOpt":
            self.average = ModelEMA(self.model)
        everything = list(self.model.parameters())
        self.parameters: Callable[[], Any] = (lambda: everything) if own else self.model.parameters
        self.amp = amp
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp)
        self.gradients: list[float] = []
        self.whole: list[float] = []

    def now(self) -> float:
        """Return the time when all that was started is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self) -> None:
        model: Any = self.model
        started = self.now()
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            loss = model.loss(self.batch, model(self.batch["img"]))[0].sum()
        self.scaler.scale(loss).backward()
        self.gradients.append(self.now() - started)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)
        self.whole.append(self.now() - started)


def peak_memory(peer: str, options: list[str]) -> int:
    """Return the peak memory in MB of a process that takes five steps."""
    command = [sys.executable, __file__, "--peak-of", peer, *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(printed.splitlines()[-1])  # ModelOpt prints too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--device", default="cpu", help="cpu, or the index of a GPU")
    parser.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    parser.add_argument("--peak-of", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = args.device if args.device == "cpu" else f"cuda:{args.device}"
    options = ["--imgsz", str(args.imgsz), "--device", args.device] + ["--amp"] * args.amp
    if args.peak_of:
        step = Stepper(PEERS[args.peak_of], args.imgsz, device, amp=args.amp)
        for _ in range(5):
            step()
        if device == "cpu":
            print(peak_resident_mb())
        else:
            print(torch.cuda.max_memory_allocated(device) // 2**20)
        return
    steppers: dict[str, Stepper] = {}
    missing = ""
    for name, peer in PEERS.items():
        try:
            steppers[name] = Stepper(peer, args.imgsz, device, amp=args.amp)
        except ImportError as error:
            missing = f"\n\nNot measured: {name} ({error})."
    for _ in range(args.rounds + 2):
        for step in steppers.values():
            step()
    fp32 = {"Ultralytics": steppers["FP32"], "qatval": steppers["FP32 in qatval"]}
    rows = []
    for name, step in steppers.items():
        own = fp32[PEERS[name].trainer]
        gradients, whole = step.gradients[2:], step.whole[2:]
        rows.append(
            [
                name,
                spread(gradients, 1e-3),
                spread(whole, 1e-3),
                f"{BATCH / statistics.median(whole):.0f}",
                f"{ratio(whole, fp32['Ultralytics'].whole[2:]):.3f}",
                f"{ratio(whole, own.whole[2:]):.3f}",
                f"{ratio(gradients, own.gradients[2:]):.3f}",
                str(peak_memory(name, options)),
            ]
        )
    header = ["", "forward + backward, ms", "whole step, ms", "images/s", "of FP32"]
    header += ["of FP32 in its trainer", "forward + backward alone", "peak, MB"]
    where = "one GPU" if device != "cpu" else f"{torch.get_num_threads()} threads"
    publish(
        "step" if device == "cpu" else "step_gpu",
        "A training step",
        f"`python benchmarks/step.py {' '.join(options)}`: yolo10n, {args.imgsz} px, batch "
        f"{BATCH}, {CLASSES} classes, {where}. Medians (quartiles) of {args.rounds} rounds, peers "
        "in turn; ratios are medians of the rounds' ratios: of the FP32 step of Ultralytics' "
        "trainer, and of the FP32 step of the trainer whose steps the peer takes.\n\n"
        + table(header, rows)
        + missing,
    )


if __name__ == "__main__":
    main()
