"""What a run costs before its first training step, beside importing its libraries.

    python benchmarks/startup.py [--rounds 3]

Both in processes of their own, in turn. The floor: ``import torch, ultralytics, brevitas.nn`` and
decoding the run's images. A run: ``qatval run`` on the embedded data (smoke, three methods) up to
the beginning of its first batch, once with and once without the scores of the FP32 checkpoint and
of the untrained W4 model, which it measures before it trains.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import REPOSITORY, publish, ratio, spread, table

FLOOR = """
import sys, pathlib
import torch, ultralytics, brevitas.nn
from ultralytics.models.yolo.detect import DetectionTrainer
import cv2
root = pathlib.Path(sys.argv[1])
for path in [*sorted(root.glob("train2017/*"))[:256], *sorted(root.glob("val2017/*"))[:128]]:
    assert cv2.imread(str(path)) is not None
"""

RUN = """
import os, sys, time
from qatval.cli.main import main
from qatval.core.environment import prepare_process
prepare_process()
from qatval.train.evaluation import Evaluator
from qatval.train.trainer import QatTrainer

scored = 0.0
evaluate = Evaluator.evaluate

def timed(self, *args, **kwargs):
    global scored
    started = time.perf_counter()
    try:
        return evaluate(self, *args, **kwargs)
    finally:
        scored += time.perf_counter() - started

def stop(self, batch):
    print(scored, flush=True)
    os._exit(0)

Evaluator.evaluate, QatTrainer.preprocess_batch = timed, stop
sys.exit(main(sys.argv[1:]))
"""


def seconds_of(code: str, *arguments: str) -> tuple[float, str]:
    started = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    floor: list[float] = []
    run: list[float] = []
    scored: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "shapes"
        os.environ.setdefault("YOLO_CONFIG_DIR", temporary)
        qatval = "import sys; from qatval.cli.main import main; sys.exit(main())"
        seconds_of(qatval, "dataset", "shapes", "--out", str(data))
        for number in range(args.rounds + 1):
            took, _ = seconds_of(FLOOR, str(data))
            command = "run --variant yolo10n --method baseline,ema,ema+qc --profile smoke"
            places = ["--run-root", f"{temporary}/run{number}", "--coco-root", str(data)]
            places += ["--cache-dir", f"{temporary}/cache", "--device", "cpu"]
            whole, printed = seconds_of(RUN, *command.split(), *places)
            if number:  # the first round fills the page cache and the subset cache
                floor.append(took)
                run.append(whole)
                scored.append(float(printed.splitlines()[-1]))
    alone = [a - b for a, b in zip(run, scored, strict=True)]
    rows = [
        ["import and decode (the floor)", spread(floor), "1.00"],
        ["run, up to its first step", spread(run), f"{ratio(run, floor):.2f}"],
        ["... without its two scores", spread(alone), f"{ratio(alone, floor):.2f}"],
    ]
    publish(
        "startup",
        "Before the first step",
        f"`python benchmarks/startup.py`: medians of {args.rounds} rounds (extremes), files in "
        "the page cache, subset in its cache.\n\n" + table(["", "seconds", "of the floor"], rows),
    )


if __name__ == "__main__":
    main()
