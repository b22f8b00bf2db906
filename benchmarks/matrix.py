"""What three methods cost that share a training, beside one QAT training and beside three.

    python benchmarks/matrix.py [--epochs 6]

Whole commands on the embedded data, smoke, one seed, each in a process of its own: ``baseline``
alone, then the three methods together, then ``ema`` and ``ema+qc`` alone. Of each command the time
between its start and its end counts, with imports, scores and reports.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import REPOSITORY, publish, table

QATVAL = [sys.executable, "-c", "import sys; from qatval.cli.main import main; sys.exit(main())"]
METHODS = ("baseline", "ema", "ema+qc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ.setdefault("YOLO_CONFIG_DIR", temporary)
        data = ["--coco-root", str(folder / "shapes"), "--cache-dir", str(folder / "cache")]
        subprocess.run([*QATVAL, "dataset", "shapes", "--out", str(folder / "shapes")], check=True)

        def seconds(methods: str) -> float:
            started = time.perf_counter()
            options = f"--variant yolo10n --profile smoke --epochs {args.epochs} --device cpu"
            places = ["--run-root", str(folder / methods), *data]
            command = [*QATVAL, "run", "--method", methods, *options.split(), *places]
            subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
            return time.perf_counter() - started

        one = {"baseline": seconds("baseline")}
        shared = seconds(",".join(METHODS))
        one |= {method: seconds(method) for method in METHODS[1:]}
    baseline, apart = one["baseline"], sum(one.values())
    rows = [[f"{method} alone", f"{s:.1f}", f"{s / baseline:.2f}"] for method, s in one.items()]
    rows.append(["three trainings", f"{apart:.1f}", f"{apart / baseline:.2f}"])
    rows.append(["three methods, one training", f"{shared:.1f}", f"{shared / baseline:.2f}"])
    publish(
        "matrix",
        "Three methods for one training",
        f"`python benchmarks/matrix.py`: `qatval run` on the embedded data, smoke, {args.epochs} "
        "epochs, one seed; whole commands.\n\n" + table(["", "seconds", "of baseline"], rows),
    )


if __name__ == "__main__":
    main()
