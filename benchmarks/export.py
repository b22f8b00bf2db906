"""Is an exported model the model that was certified, and what does it take?

    python benchmarks/export.py [--photographs [DIR]] [--out DIR]

Untrained, trained and FP32 models of each precision go through ``qatval run --export``: on the
embedded data, or at 640 px on photographs in a folder as QATVAL_REAL_DATA names one, where nothing
is trained (that adds minutes and changes no layer's form). The table has mAP in torch and in each
runtime, how far detections lie apart, sizes, and on one thread the latency beside that of the same
run exported with float weights: both run in turn, the ratio is the median of the rounds'.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from measure import REPOSITORY, in_turn, publish, ratio, spread, table
from photographs import photographs, real_data
from qatval.cli.study import carry_out
from qatval.core.deployment import RUNTIME_LABELS
from qatval.deploy.export.delivered import delivered
from qatval.deploy.export.description import card_of
from qatval.deploy.export.onnx_file import export_onnx
from qatval.deploy.runtimes import Runtime, open_runtime
from qatval.run.study.engines.local import LocalEngine
from qatval.run.study.matrix import EMBEDDED, Precision, Schedule, Study
from qatval.run.study.plan import Plan
from qatval.run.study.planning import planned
from qatval.train.models import load_checkpoint

ROUNDS = 40
PRECISIONS = {
    "w4-per-channel": ("W4 per channel", Precision(scale="per-channel")),
    "w4-per-tensor": ("W4 per tensor", Precision(scale="per-tensor")),
    "w3-per-channel": (
        "W3 per channel",
        Precision(weight_bits=3, scale="per-channel", start_scale="mse"),
    ),
    "paper": ("paper (W4A4, ends at 8)", Precision(quantization="paper")),
}
HEADER = (
    "model",
    "mAP in torch",
    "in the runtime",
    "largest difference of a box, px",
    "of a score",
    "unmatched",
    "file, MB",
    "of FP32's",
    "ms an image",
    "of float weights'",
    "MiB",
    "convolutions in",
)


def asked_for(folder: Path | None) -> Study:
    """Return what is run."""
    coco_root, checkpoint = (EMBEDDED, None) if folder is None else photographs(folder)
    return Study(
        source="benchmarks/export.py",
        variants=("yolo10n",),
        methods=("ptq", "ema+qc", "fp32") if folder is None else ("ptq+shift", "ptq"),
        seeds=(0,),
        dataset=str(coco_root),
        quantizations={name: precision for name, (_, precision) in PRECISIONS.items()},
        trainings={
            "smoke": Schedule(
                profile="smoke",
                imgsz=None if folder is None else 640,
                checkpoint=None if checkpoint is None else str(checkpoint),
                export=True,
            )
        },
    )


def rows(plan: Plan, out: Path) -> Iterator[tuple[str, ...]]:
    """Yield a row for each file and runtime."""
    for job in plan.jobs:
        label, _ = PRECISIONS[job.quantization]
        for method, root in job.run_roots(out).items():
            yield from _rows(method if method == "fp32" else f"{label}, {method}", root)


def _rows(name: str, root: Path) -> Iterator[tuple[str, ...]]:
    found = delivered(root)
    summary = found.summary
    deployment = summary.deployment
    assert deployment is not None
    ours, fp32 = deployment.exported, deployment.fp32
    assert ours.file is not None
    with tempfile.TemporaryDirectory() as folder:
        in_float = Path(folder) / "float.onnx"
        model = load_checkpoint(found.weights)
        card = card_of(summary, model, weights_sha256=found.weights_sha256, storage="float")
        export_onnx(model, card, in_float)
        for runtime in ours.runtimes:
            peers = {
                what: _call(open_runtime(runtime.name, file, threads=1))
                for what, file in (("ours", root / ours.file), ("float", in_float))
            }
            seconds = in_turn(peers, ROUNDS)
            agreement = runtime.agreement
            assert agreement is not None
            yield (
                f"{name}, {RUNTIME_LABELS[runtime.name]}",
                f"{summary.metrics.final_value:.4f}",
                f"{runtime.value:.4f}",
                f"{agreement.box:.3f}",
                f"{agreement.score:.5f}",
                f"{agreement.unmatched:,} of {agreement.detections:,}",
                f"{ours.bytes / 1e6:.2f}",
                f"{ours.bytes / fp32.bytes:.3f}",
                spread(seconds["ours"], 1e-3),
                f"{ratio(seconds['ours'], seconds['float']):.2f}",
                "-" if runtime.resident_mb is None else str(runtime.resident_mb),
                "; ".join(f"{count} {precision}" for precision, count in runtime.executed.items()),
            )


def _call(runtime: Runtime) -> Callable[[], object]:
    side = runtime.card.input.imgsz
    image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    return lambda: runtime.run(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, nargs="?", const=real_data(), metavar="DIR")
    parser.add_argument("--out", type=Path, help="keep the runs there")
    args = parser.parse_args()
    os.chdir(REPOSITORY)  # checkpoints are named relative to it
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        plan = planned(asked_for(args.photographs), out, places=1)
        if carry_out(plan, out, LocalEngine(plan.resources, 1), cache_dir=out / "cache"):
            raise SystemExit(1)
        where, name = "embedded data, 128 px", "export_embedded"
        if args.photographs is not None:
            where, name = "photographs, 640 px", "export_photographs"
        publish(name, f"Exported models: {where}", table(HEADER, [*rows(plan, out)]))


if __name__ == "__main__":
    main()
