"""What a QAT step costs beside FP32, Brevitas and ModelOpt: yolo10n, 160 px, batch 16.

Weights to 4 bits, and weights and activations to 4 bits as Gupta & Asthana train them.

    python benchmarks/step.py [--rounds 15]

Each peer is timed twice over: forward and backward alone, and the whole step as its trainer takes
it (clipping, AdamW, averaging: Ultralytics' own for all but qatval). ModelOpt is measured where
``nvidia-modelopt`` and ``huggingface_hub`` are installed, inserted by Ultralytics' own
``prepare_qat``. Peak memory is that of a process that takes five steps and nothing else.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qatval.environment import limit_spinning

limit_spinning()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from measure import publish, ratio, spread, table  # noqa: E402
from qatval.config import quantization  # noqa: E402
from qatval.quant.averaging import WeightAverage  # noqa: E402
from qatval.quant.fused import fuse_quantization  # noqa: E402
from qatval.quant.layers import (  # noqa: E402
    calibrate_activations,
    insert_quantizers,
    quantized_layers,
    scale_parameters,
)
from qatval.train.models import build_model  # noqa: E402

BATCH, CLASSES = 16, 80
PEERS = {
    "FP32": "FP32",
    "qatval": "qatval, W4 learned scale",
    "brevitas": "Brevitas, W4 learned scale",
    "statistics": "Brevitas, W4 scale from statistics",
    "qatval a4": "qatval, W4A4, first and last layers at 8 bits",
    "brevitas a4": "Brevitas, the same",
    "modelopt": "ModelOpt INT8 (Ultralytics `quantize=8`)",
}


def a_batch(imgsz: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    boxes = 4 * BATCH
    return {
        "img": torch.rand(BATCH, 3, imgsz, imgsz, generator=generator),
        "batch_idx": torch.arange(BATCH).repeat_interleave(4).float(),
        "cls": torch.randint(0, CLASSES, (boxes, 1), generator=generator).float(),
        "bboxes": torch.rand(boxes, 4, generator=generator) * 0.3 + 0.3,
    }


def a_model(peer: str, batch: dict[str, Tensor]) -> nn.Module:
    """Build one peer's model; all start from the same weights."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import DEFAULT_CFG

    torch.manual_seed(0)
    model: Any = build_model("yolov10n.yaml", [str(n) for n in range(CLASSES)])
    model.args = get_cfg(DEFAULT_CFG)
    if peer.startswith(("qatval", "brevitas")):
        insert_quantizers(model, quantization("paper" if peer.endswith("a4") else "w4a16"))
        calibrate_activations(model, [batch["img"]])
    elif peer == "statistics":
        with_statistics(model)
    elif peer == "modelopt":
        from ultralytics.utils.torch_utils import prepare_qat

        model = prepare_qat(model, [batch], lambda same: same, batches=1)
    if peer.startswith("qatval"):
        fuse_quantization(model)
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
            )
            layer.load_state_dict(conv.state_dict(), strict=False)
            model.set_submodule(name, layer)
    assert len(list(quantized_layers(model))) == 107


class Stepper:
    """Takes training steps with one peer; notes what forward and backward took of each."""

    def __init__(self, peer: str, imgsz: int) -> None:
        from ultralytics.utils.torch_utils import ModelEMA

        self.batch = a_batch(imgsz)
        self.model = a_model(peer, self.batch)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("dfl" not in name)
        own = peer.startswith("qatval")
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, foreach=True if own else None)
        self.average: Any = None
        if own:
            scales = scale_parameters(self.model)
            self.average = WeightAverage(self.model, 0.9999, 2000.0, scales)
        elif peer != "modelopt":
            self.average = ModelEMA(self.model)
        everything = list(self.model.parameters())
        self.parameters: Callable[[], Any] = (lambda: everything) if own else self.model.parameters
        self.gradients: list[float] = []
        self.whole: list[float] = []

    def __call__(self) -> None:
        model: Any = self.model
        started = time.perf_counter()
        model.loss(self.batch, model(self.batch["img"]))[0].sum().backward()
        self.gradients.append(time.perf_counter() - started)
        torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm=10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)
        self.whole.append(time.perf_counter() - started)


def peak_memory(peer: str, imgsz: int) -> int:
    """Return the peak memory in MB of a process that takes five steps."""
    command = [sys.executable, __file__, "--peak-of", peer, "--imgsz", str(imgsz)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(printed.splitlines()[-1])  # ModelOpt prints too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--peak-of", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        step = Stepper(args.peak_of, args.imgsz)
        for _ in range(5):
            step()
        status = Path("/proc/self/status").read_text()
        print(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) // 1024)
        return
    steppers: dict[str, Stepper] = {}
    missing = ""
    for peer in PEERS:
        try:
            steppers[peer] = Stepper(peer, args.imgsz)
        except ImportError as error:
            missing = f"\n\nNot measured: {PEERS[peer]} ({error})."
    for _ in range(args.rounds + 2):
        for step in steppers.values():
            step()
    fp32 = steppers["FP32"]
    rows = []
    for peer, step in steppers.items():
        gradients, whole = step.gradients[2:], step.whole[2:]
        rows.append(
            [
                PEERS[peer],
                spread(gradients, 1e-3),
                f"{ratio(gradients, fp32.gradients[2:]):.3f}",
                spread(whole, 1e-3),
                f"{ratio(whole, fp32.whole[2:]):.3f}",
                str(peak_memory(peer, args.imgsz)),
            ]
        )
    header = ["", "forward + backward, ms", "of FP32", "whole step, ms", "of FP32", "peak, MB"]
    publish(
        "step",
        "A training step",
        f"`python benchmarks/step.py`: yolo10n, {args.imgsz} px, batch {BATCH}, {CLASSES} classes, "
        f"{torch.get_num_threads()} threads. Medians (quartiles) of {args.rounds} rounds, peers in "
        "turn; ratios are medians of the rounds' ratios.\n\n" + table(header, rows) + missing,
    )


if __name__ == "__main__":
    main()
