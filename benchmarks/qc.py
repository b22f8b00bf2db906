"""What a step of quantization correction (QC) costs beside FP32 and QC written with Brevitas.

    python benchmarks/qc.py [--rounds 15]

The peer follows the paper literally: Brevitas' layers with frozen weights, quantized in every
forward, ``gamma * h + beta`` on the activations, a BatchNorm in evaluation mode behind it. It and
the first FP32 training have their weights and images where Ultralytics' trainer has them on a CPU,
the others where qatval's has them: channels last.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from qatval.core.environment import prepare_process

prepare_process()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from measure import in_turn, publish, ratio, spread, table  # noqa: E402
from qatval.quant.correction import attach_corrections  # noqa: E402
from qatval.quant.integer import to_integer  # noqa: E402
from qatval.quant.quantized_conv import quantized_layers  # noqa: E402
from step import BATCH, PEERS, Peer, a_batch, a_model  # noqa: E402


class Literal(nn.Module):
    """``gamma * h + beta`` after a Brevitas layer."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer = layer
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        return self.gamma * h + self.beta


def literal(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    for name, layer in list(quantized_layers(model)):
        model.set_submodule(name, Literal(layer, layer.out_channels))
    return model


def stepper(model: Any, batch: dict[str, Tensor], make: type[torch.optim.Optimizer]) -> Callable:
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=1e-5)  # type: ignore[call-arg]

    def step() -> None:
        model.loss(batch, model(batch["img"]))[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=160)
    args = parser.parse_args()
    batch = a_batch(args.imgsz)
    contiguous = {**batch, "img": batch["img"].contiguous()}
    quantized, plainly = Peer("Brevitas", "qatval"), Peer("Brevitas", "Ultralytics")
    models = {
        "FP32 training": a_model(PEERS["FP32"], batch),
        "FP32 training in qatval": a_model(PEERS["FP32 in qatval"], batch),
        "QC, qatval": attach_corrections(to_integer(a_model(quantized, batch).eval())),
        "QC, Brevitas": literal(a_model(plainly, batch)),
    }
    for name, model in models.items():
        if name.startswith("QC"):
            model.train()
            model.args = models["FP32 training"].args
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
    steps = {
        name: stepper(model, batch if "qatval" in name else contiguous, torch.optim.Adam)
        for name, model in models.items()
    }
    seconds = in_turn(steps, args.rounds)
    fp32, own = seconds["FP32 training"], seconds["FP32 training in qatval"]
    rows = [
        [name, spread(taken, 1e-3), f"{ratio(taken, fp32):.3f}", f"{ratio(taken, own):.3f}"]
        for name, taken in seconds.items()
    ]
    publish(
        "qc",
        "A step of quantization correction",
        f"`python benchmarks/qc.py`: yolo10n, {args.imgsz} px, batch {BATCH}, "
        f"{torch.get_num_threads()} threads, Adam. Medians (quartiles) of {args.rounds} rounds, "
        "peers in turn; ratios are medians of the rounds' ratios.\n\n"
        + table(["", "step, ms", "of FP32", "of FP32 in qatval"], rows),
    )


if __name__ == "__main__":
    main()
