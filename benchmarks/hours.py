"""What a table like Gupta & Asthana's takes on all of COCO, from steps measured here.

Three models, two precisions, five methods, five seeds, 100 epochs each, at 640 px.

    python benchmarks/hours.py [--images 2] [--rounds 5]        # on a CPU: what the ratios are
    python benchmarks/hours.py --device 0 --images 16 --amp     # on a GPU: what it takes there

Of each model a training step is timed as qatval takes it, and the evaluation of an image. All else
is arithmetic: no run of this size was made. Loading and augmentation are left out, which overlap
with the steps where there are cores enough; so is what a run takes before its first step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from qatval.core.environment import prepare_process

prepare_process()

import torch  # noqa: E402

from measure import publish, table  # noqa: E402
from qatval.core.presets import variant  # noqa: E402
from qatval.quant.methods import method  # noqa: E402
from step import Peer, Stepper  # noqa: E402

MODELS = ("yolo10n", "yolo10s", "yolo10m")
METHODS = ("baseline", "qc", "dampen", "ema", "ema+qc")
PRECISIONS, SEEDS, EPOCHS, IMGSZ = 2, 5, 100, 640
TRAIN_IMAGES, VAL_IMAGES = 118_287, 5_000


@dataclass(frozen=True)
class Measured:
    """Seconds per image of one model.

    Attributes:
        fp32: A training step of Ultralytics' trainer.
        step: A training step of qatval, weights and activations quantized as the paper's.
        evaluation: A forward in evaluation.
    """

    fp32: float
    step: float
    evaluation: float


def measured(architecture: str, images: int, rounds: int, device: str, amp: bool) -> Measured:
    """Time one model's steps, in turn, after two to warm up."""
    how = {"amp": amp, "images": images, "architecture": architecture}
    fp32 = Stepper(Peer("none", "Ultralytics"), IMGSZ, device, **how)
    step = Stepper(Peer("qatval", "qatval", "paper"), IMGSZ, device, **how)
    for _ in range(rounds + 2):
        fp32()
        step()
    forward = []
    fp32.model.eval()
    with torch.inference_mode():
        for _ in range(rounds + 2):
            started = fp32.now()
            fp32.model(fp32.batch["img"])
            forward.append(fp32.now() - started)
    medians = [statistics.median(taken[2:]) for taken in (fp32.whole, step.whole, forward)]
    return Measured(*(median / images for median in medians))


def counted() -> tuple[int, int]:
    """Return how many trainings the methods take together, and how many models these score."""
    trainings, scored = [], []
    for one in map(method, METHODS):
        trainings += [one.training] * (one.training not in trainings)
        scored += [(one.training, one.weights)] * ((one.training, one.weights) not in scored)
    return len(trainings), len(scored)


def hours(took: Measured, trained: int, scored: int) -> float:
    """Return what one model takes in all precisions and seeds.

    Args:
        took: Of the model.
        trained: Trainings of each precision and seed.
        scored: Models that are scored after every epoch of these, raw or averaged.
    """
    epoch = trained * TRAIN_IMAGES * took.step + scored * VAL_IMAGES * took.evaluation
    return PRECISIONS * SEEDS * EPOCHS * epoch / 3600


def rows(found: dict[str, Measured]) -> Iterator[list[str]]:
    """Yield a line for each model and one for all."""
    totals = [0.0, 0.0]
    for name, took in found.items():
        apart = hours(took, len(METHODS), len(METHODS))
        shared = hours(took, *counted())
        totals = [totals[0] + apart, totals[1] + shared]
        yield [
            name,
            f"{took.fp32 * 1000:.3g}",
            f"{took.step * 1000:.3g}",
            f"{took.step / took.fp32:.2f}",
            f"{took.evaluation * 1000:.3g}",
            f"{apart:,.0f}",
            f"{shared:,.0f}",
            f"{shared / apart:.2f}",
        ]
    yield ["all", *[""] * 4, *(f"{total:,.0f}" for total in totals), f"{totals[1] / totals[0]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2, help="in a step")
    parser.add_argument("--device", default="cpu", help="cpu, or the index of a GPU")
    parser.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    args = parser.parse_args()
    device = args.device if args.device == "cpu" else f"cuda:{args.device}"
    found = {
        name: measured(variant(name).architecture, args.images, args.rounds, device, args.amp)
        for name in MODELS
    }
    where = "one GPU" if device != "cpu" else f"{torch.get_num_threads()} threads of a CPU"
    header = ["", "FP32 step, ms/image", "W4A4 step", "of FP32", "evaluation"]
    header += ["hours, each method trained", "hours, trainings shared", "ratio"]
    runs = PRECISIONS * SEEDS * len(MODELS)
    publish(
        "hours" if device == "cpu" else "hours_gpu",
        "What the paper's table takes",
        f"`python benchmarks/hours.py --device {args.device} --images {args.images}`: {IMGSZ} px, "
        f"{args.images} images in a step, {where}. Medians of {args.rounds} rounds. Hours are for "
        f"{PRECISIONS} precisions, {len(METHODS)} methods ({', '.join(METHODS)}), {SEEDS} seeds, "
        f"{EPOCHS} epochs of {TRAIN_IMAGES:,} images and a score on {VAL_IMAGES:,} after each, "
        f"reckoned and not run: {runs * len(METHODS)} trainings apart, {runs * counted()[0]} "
        "shared.\n\n" + table(header, [*rows(found)]),
    )


if __name__ == "__main__":
    main()
