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
from typing import Any

import numpy as np

from campaign import Part, carry_out, photographs, real_data
from measure import REPOSITORY, in_turn, publish, ratio, spread, table
from qatval.core.deployment import RUNTIME_LABELS
from qatval.data.shapes import draw_dataset
from qatval.deploy.export.delivered import delivered
from qatval.deploy.export.description import card_of
from qatval.deploy.export.onnx_file import export_onnx
from qatval.deploy.runtimes import Runtime, open_runtime
from qatval.train.models import load_checkpoint

ROUNDS = 40
PRECISIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "W4 per channel": ("w4a16", {"scale": "per-channel"}),
    "W4 per tensor": ("w4a16", {"scale": "per-tensor"}),
    "W3 per channel": ("w4a16", {"weight_bit_width": 3, "start": {"scale": "mse"}}),
    "paper (W4A4, ends at 8)": ("paper", {}),
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


def parts(out: Path, folder: Path | None) -> list[Part]:
    """List what is run; the FP32 control stands with the first precision."""
    if folder is None:
        coco_root, options = out / "shapes", {"profile": "smoke"}
        draw_dataset(coco_root)
        methods: tuple[str, ...] = ("ptq", "ema+qc")
    else:
        coco_root, checkpoint = photographs(folder)
        options = {"profile": "smoke", "checkpoint": checkpoint, "imgsz": 640}
        methods = ("ptq+shift", "ptq")
    return [
        Part(
            label=name,
            root=out / name.split(",")[0].replace(" ", "-"),
            methods=(*methods, "fp32") if number == 0 and folder is None else methods,
            seed=0,
            coco_root=coco_root,
            precision=precision,
            options={**options, "quantization": preset, "device": "cpu", "export": True},
        )
        for number, (name, (preset, precision)) in enumerate(PRECISIONS.items())
    ]


def rows(done: list[Part]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each file and runtime."""
    for part in done:
        for method in part.methods:
            name = method if method == "fp32" else f"{part.label}, {method}"
            yield from _rows(name, part.root / method)


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
        wanted = parts(out, args.photographs)
        carry_out(wanted, 1, out / "cache")
        where, name = "embedded data, 128 px", "export_embedded"
        if args.photographs is not None:
            where, name = "photographs, 640 px", "export_photographs"
        publish(name, f"Exported models: {where}", table(HEADER, [*rows(wanted)]))


if __name__ == "__main__":
    main()
