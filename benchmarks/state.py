"""What it costs that the state of a training is saved after every epoch: yolo10n, 320 px, batch 16.

    python benchmarks/state.py [--rounds 8] [--images 256] [--coco-root DIR --checkpoint FILE]

One training of W4 with tracking, whose epochs in turn save nothing, save the state, and save the
latest weights of both kinds instead, as each epoch did before there was a state. The saving's share
of its own epoch is what other load on the machine disturbs least. Data are the embedded ones unless
others are given.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from qatval.core.environment import prepare_process

prepare_process()

import torch  # noqa: E402

from measure import publish, ratio, spread, table  # noqa: E402
from qatval.core import presets  # noqa: E402
from qatval.data.shapes import draw_dataset  # noqa: E402
from qatval.data.subset import build_subset, presets_of  # noqa: E402
from qatval.quant.methods import method  # noqa: E402
from qatval.train import state, trainer  # noqa: E402
from qatval.train.trajectory import TrainingPlan  # noqa: E402

IMGSZ, BATCH = 320, 16
SAVING = ("nothing", "the latest weights, as before", "the state")


class Measured(trainer.QatTrainer):
    """Saves something else in every epoch, and notes how long each took."""

    epochs_took: dict[str, list[float]]
    saves_took: dict[str, list[float]]
    bytes_saved: int

    def saving(self) -> str:
        return SAVING[self.epoch % len(SAVING)]

    def save_state(self) -> None:
        started = time.perf_counter()
        if self.saving() == "the state":
            super().save_state()
            Measured.bytes_saved = (self._work / state.NAME).stat().st_size
        elif self.saving() != "nothing":
            self.kept.keep_last()
        self.saves_took[self.saving()].append(time.perf_counter() - started)

    def _train_epoch(self) -> bool:
        self.began = time.perf_counter()
        return super()._train_epoch()

    def _score_epoch(self) -> None:
        super()._score_epoch()
        self.epochs_took[self.saving()].append(time.perf_counter() - self.began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--coco-root", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(args, Path(name))
    alone = Measured.epochs_took["nothing"][1:]
    before = Measured.epochs_took[SAVING[1]][1:]
    rows = [
        [
            what,
            spread(Measured.epochs_took[what][1:]),
            f"{ratio(Measured.epochs_took[what][1:], alone):.3f}",
            f"{ratio(Measured.epochs_took[what][1:], before):.3f}",
            spread(Measured.saves_took[what][1:], 1e-3),
            f"{ratio(Measured.saves_took[what][1:], Measured.epochs_took[what][1:]):.2%}",
        ]
        for what in SAVING
    ]
    header = ["saved after an epoch", "epoch, s", "of nothing", "of before", "saving alone, ms"]
    header.append("of its epoch")
    data = "embedded data" if args.coco_root is None else "photographs of COCO"
    publish(
        "state",
        "Saving the state of a training",
        f"`python benchmarks/state.py`: yolo10n, {IMGSZ} px, batch {BATCH}, W4 with tracking, "
        f"{args.images} images of {data} an epoch and a fourth as many to validate on, "
        f"{torch.get_num_threads()} threads. Medians (quartiles) of {args.rounds} rounds, what is "
        "saved in turn; ratios are medians of the rounds' ratios. The state has "
        f"{Measured.bytes_saved / 1e6:.0f} MB.\n\n" + table(header, rows),
    )


def measure(args: Any, work: Path) -> None:
    root, variant = args.coco_root, presets.variant("yolo10n")
    if root is None:
        root = work / "shapes"
        draw_dataset(root, train_images=args.images, val_images=args.images // 4)
    subset = build_subset(
        root,
        train_images=args.images,
        val_images=args.images // 4,
        seed=0,
        cache_dir=work / "cache",
    )
    checkpoint = args.checkpoint or variant.checkpoint_for(presets_of(root))
    averaging = method("ema").averaging
    assert averaging is not None
    plan = TrainingPlan(
        subset=str(subset.directory),
        architecture=variant.architecture,
        checkpoint=str(checkpoint.resolve()),
        quantization=presets.quantization("w4a16"),
        averaging=averaging,
        scored=("raw", "ema"),
        threads=torch.get_num_threads(),
        track=True,
    )
    Measured.epochs_took = {what: [] for what in SAVING}
    Measured.saves_took = {what: [] for what in SAVING}
    trainer.QatTrainer = Measured  # type: ignore[misc]
    arguments = {
        **presets.profile("coco2017", "smoke").overrides,
        "epochs": len(SAVING) * (args.rounds + 1),
        "batch": BATCH,
        "imgsz": IMGSZ,
        "seed": 0,
        "device": "cpu",
        "workers": 0,
        "amp": False,
    }
    trainer.train(work / "training", plan, arguments, {})


if __name__ == "__main__":
    main()
