"""What it costs to watch and to stabilise the weights: yolo10n, 160 px, batch 16.

    python benchmarks/tracking.py [--rounds 15]

Whole training steps of fused W4 quantization, as the trainer takes them, without and with tracking
(the codes captured in the forward included), dampening, and freezing after its start. Beside them
the tracker alone, on random codes of which 0.5 % change in a step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from qatval.core.environment import prepare_process

prepare_process()

import torch  # noqa: E402

from measure import in_turn, publish, ratio, spread, table  # noqa: E402
from qatval.quant.averaging import WeightAverage  # noqa: E402
from qatval.quant.dampening import Dampening  # noqa: E402
from qatval.quant.freezing import Freezing  # noqa: E402
from qatval.quant.fused import fuse_quantization  # noqa: E402
from qatval.quant.latent import LatentWeights  # noqa: E402
from qatval.quant.oscillation import OscillationTracker  # noqa: E402
from qatval.quant.quantized_conv import scale_parameters  # noqa: E402
from qatval.quant.stabilizing import Stabilizer  # noqa: E402
from step import BATCH, Peer, a_batch, a_model  # noqa: E402

CHANGING = 0.005


class Stepper:
    """Takes training steps; ``watched`` captures the codes and follows them."""

    def __init__(
        self,
        imgsz: int,
        *,
        watched: bool = False,
        stabilizer: Callable[[LatentWeights], Stabilizer] = Stabilizer,
    ) -> None:
        self.batch = a_batch(imgsz)
        self.model: Any = a_model(Peer("Brevitas", "qatval"), self.batch)
        self.parameters = list(self.model.parameters())
        trained = [p for p in self.parameters if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.average = WeightAverage(self.model, 0.9999, 2000.0, scale_parameters(self.model))
        self.weights = LatentWeights(self.model)
        self.stabilizer = stabilizer(self.weights)
        self.fused = fuse_quantization(self.model, capture=watched)
        self.tracker = OscillationTracker(self.weights) if watched else None
        self.observing: list[float] = []

    def __call__(self) -> None:
        self.model.loss(self.batch, self.model(self.batch["img"]))[0].sum().backward()
        if self.tracker is not None:
            started = time.perf_counter()
            self.tracker.observe(self.fused.codes)
            self.observing.append(time.perf_counter() - started)
        self.stabilizer.before_step(0.5, BATCH)
        torch.nn.utils.clip_grad_norm_(self.parameters, max_norm=10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.stabilizer.after_step(0.5)
        self.average.update(self.model)


def tracker_alone(weights: LatentWeights) -> Callable[[], None]:
    """Return a step of tracking on codes of which a share goes to and fro."""
    generator = torch.Generator().manual_seed(0)
    here = weights.flat_codes()
    changing = torch.rand(here.shape, generator=generator) < CHANGING
    there = torch.where(changing, here - here.sign(), here)
    turns = [here, there]
    tracker = OscillationTracker(weights)

    def step() -> None:
        tracker.observe(turns[tracker.steps % 2])

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=160)
    args = parser.parse_args()
    plain = Stepper(args.imgsz)
    tracked = Stepper(args.imgsz, watched=True)
    peers: dict[str, Callable[[], None]] = {
        "fused W4": plain,
        "tracked": tracked,
        "dampened": Stepper(args.imgsz, stabilizer=lambda w: Dampening(w, weight=1e-2)),
        "freezing": Stepper(
            args.imgsz, stabilizer=lambda w: Freezing(w, 0.01, 0.04, 0.01, start=0.25)
        ),
        "tracker alone": tracker_alone(plain.weights),
    }
    seconds = in_turn(peers, args.rounds)
    rows = [
        [name, spread(times, 1e-3), f"{ratio(times, seconds['fused W4']):.3f}"]
        for name, times in seconds.items()
    ]
    observing = tracked.observing[-args.rounds :]
    assert tracked.tracker is not None
    tracked.tracker.end_epoch(1)
    record = tracked.tracker.result().epochs[0]
    rows.append(
        [
            "within a tracked step",
            spread(observing, 1e-3),
            f"{ratio(observing, seconds['fused W4']):.3f}",
        ]
    )
    publish(
        "tracking",
        "Watching and stabilising the weights",
        f"`python benchmarks/tracking.py`: yolo10n, {args.imgsz} px, batch {BATCH}, "
        f"{sum(plain.weights.sizes)} quantized weights, {torch.get_num_threads()} threads. Medians "
        f"(quartiles) of {args.rounds} rounds, peers in turn; ratios are medians of the rounds' "
        "ratios. Per step, "
        f"{record.change_rate:.2%} of the codes changed in the tracked training and "
        f"{CHANGING:.1%} in front of the tracker alone.\n\n"
        + table(["", "step, ms", "of fused W4"], rows),
    )


if __name__ == "__main__":
    main()
