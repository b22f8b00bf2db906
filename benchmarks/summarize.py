"""How long `qatval summarize` takes over many runs, in a process of its own.

    python benchmarks/summarize.py [RUNS]

The goal is 5 s for 1,000 runs. Summaries are those of `qatval.testing` with the coverage, the
oscillation, the BatchNorm drift and the bootstrap of a real yolo10n run: 108 layers, 95 of them
with BatchNorm, 500 resamples, 12 epochs.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from qatval.core.summary import SUMMARY_NAME
from qatval.testing import build_summary

RUN = "import sys; from qatval.cli.main import main; sys.exit(main())"
METHODS = ("baseline", "ema", "ema+qc")
LAYERS = [
    {"name": f"model.{n}.conv", "bits": 4, "scale": "per-tensor", "reason": None}
    for n in range(107)
] + [{"name": "model.23.dfl.conv", "bits": None, "scale": None, "reason": "holds 0..15"}]


def write_runs(folder: Path, count: int) -> None:
    for number in range(count):
        seed, method = divmod(number, len(METHODS))
        values = [0.3 + 0.02 * epoch for epoch in range(12)] + [0.55 + seed % 7 / 1000]
        changes = {"quantization": {"coverage": {"layers": LAYERS}}} | diagnosed(number)
        summary = build_summary(METHODS[method], seed, values, resamples=500, changes=changes)
        root = folder / f"seed{seed}" / METHODS[method]
        root.mkdir(parents=True)
        (root / SUMMARY_NAME).write_bytes(msgspec.json.encode(summary))


def diagnosed(number: int) -> dict[str, dict[str, Any]]:
    """Return what a run records per layer, with values that no other run has."""
    draw = random.Random(number)
    columns = ("oscillating", "flips", "reversals", "near_threshold", "threshold_distance")
    oscillating = [
        {"name": layer["name"], "weights": 4608, "scale_drift": draw.random()}
        | {column: draw.random() / 2 for column in columns}
        for layer in LAYERS[:-1]
    ]
    drifting = [
        {"name": layer["name"], "kl_mean": draw.random(), "kl_max": draw.random()}
        for layer in LAYERS[:95]
    ]
    return {"oscillation": {"layers": oscillating}, "batchnorm": {"layers": drifting}}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_runs(folder / "runs", count)
        out = folder / "comparison.json"
        command = [sys.executable, "-c", RUN, "summarize", str(folder / "runs")]
        start = time.perf_counter()
        subprocess.run([*command, "--out-path", str(out)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        size = out.with_suffix(".html").stat().st_size / 1e6
    print(f"{count} runs: {seconds:.2f} s, report of {size:.1f} MB")


if __name__ == "__main__":
    main()
