"""What three methods cost that share a training, beside one QAT training and beside three.

    python benchmarks/matrix.py [--epochs 6] [--rounds 2]

Whole commands on the embedded data, smoke, one seed, each in a process of its own: ``baseline``
alone and the three methods together, in turn, then ``ema`` and ``ema+qc`` alone, once. Of each
command the time between its start and its end counts, with imports, scores and reports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import REPOSITORY, publish, ratio, spread, table

QATVAL = [sys.executable, "-c", "import sys; from qatval.cli.main import main; sys.exit(main())"]
METHODS = ("baseline", "ema", "ema+qc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
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
            command.append("--overwrite")
            subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
            return time.perf_counter() - started

        rounds = [(seconds("baseline"), seconds(",".join(METHODS))) for _ in range(args.rounds)]
        baseline, shared = (list(times) for times in zip(*rounds, strict=True))
        others = {method: seconds(method) for method in METHODS[1:]}
    one = statistics.median(baseline)
    apart = one + sum(others.values())
    rows = [["baseline alone", spread(baseline), "1.00"]]
    rows += [[f"{method} alone", f"{s:.3g}", f"{s / one:.2f}"] for method, s in others.items()]
    rows.append(["three trainings", f"{apart:.3g}", f"{apart / one:.2f}"])
    rows.append(["three methods, one training", spread(shared), f"{ratio(shared, baseline):.2f}"])
    publish(
        "matrix",
        "Three methods for one training",
        f"`python benchmarks/matrix.py`: `qatval run` on the embedded data, smoke, {args.epochs} "
        f"epochs, one seed; whole commands. Medians (extremes) of {args.rounds} rounds where there "
        "are any, the ratio the median of the rounds' ratios.\n\n"
        + table(["", "seconds", "of baseline"], rows),
    )


if __name__ == "__main__":
    main()
