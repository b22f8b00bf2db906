"""Is an exported model the model that was certified, and what does it take?

    python benchmarks/export.py [--photographs [DIR]] [--jobs 1]

Untrained, trained and FP32 models of each precision go through ``qatval run --export``: on the
embedded data, or at 640 px on photographs in a folder as QATVAL_REAL_DATA names one, where the
untrained model with shifted statistics stands for all (training adds minutes and changes no
layer's form). The table has mAP in torch and in each runtime, how far detections lie apart, sizes,
and latency on one thread beside that of the FP32 checkpoint exported alike. Times are those of a
quiet machine only if it was one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign import Part, carry_out, photographs, real_data
from measure import REPOSITORY, publish, table
from qatval.core.deployment import RUNTIME_LABELS, Latency
from qatval.core.option_types import positive
from qatval.core.summary import RunSummary, load_summary
from qatval.data.shapes import draw_dataset

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
    "FP32's",
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
            summary = load_summary(part.root / method)
            name = method if method == "fp32" else f"{part.label}, {method}"
            yield from _rows(name, summary)


def _rows(name: str, summary: RunSummary) -> Iterator[tuple[str, ...]]:
    deployment = summary.deployment
    assert deployment is not None
    ours, fp32 = deployment.exported, deployment.fp32
    for runtime, beside in zip(ours.runtimes, fp32.runtimes, strict=True):
        agreement = runtime.agreement
        assert agreement is not None
        yield (
            f"{name}, {RUNTIME_LABELS[runtime.name]}",
            f"{summary.metrics.final_value:.4f}",
            f"{runtime.value:.4f}",
            f"{agreement.box:.3f}",
            f"{agreement.score:.5f}",
            f"{agreement.unmatched} of {agreement.detections:,}",
            f"{ours.bytes / 1e6:.2f}",
            f"{ours.bytes / fp32.bytes:.3f}",
            _spread(runtime.latency),
            _spread(beside.latency),
            "-" if runtime.resident_mb is None else str(runtime.resident_mb),
            "; ".join(f"{count} {precision}" for precision, count in runtime.executed.items()),
        )


def _spread(latency: Latency) -> str:
    return f"{latency.median_ms:.3g} ({latency.low_ms:.3g}..{latency.high_ms:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, nargs="?", const=real_data(), metavar="DIR")
    parser.add_argument("--jobs", type=positive, default=1, help="times count with 1 alone")
    parser.add_argument("--out", type=Path, help="keep the runs there")
    args = parser.parse_args()
    os.chdir(REPOSITORY)  # checkpoints are named relative to it
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        wanted = parts(out, args.photographs)
        carry_out(wanted, args.jobs, out / "cache")
        where, name = "embedded data, 64 px", "export_embedded"
        if args.photographs is not None:
            where, name = "photographs, 640 px", "export_photographs"
        publish(name, f"Exported models: {where}", table(HEADER, [*rows(wanted)]))


if __name__ == "__main__":
    main()
