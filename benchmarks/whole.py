"""Where the seconds of a whole run go: smoke, short and full on the embedded data.

    python benchmarks/whole.py [--profiles smoke,short,full]

One run each (baseline, ema and ema+qc on one training), in a process of its own, from its start to
its end, timed by stages and within the training by what is done. On the CPU images are loaded in
the training process, so their time is seen too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import REPOSITORY, publish, table
from qatval.core.presets import profile_names

RUN = """
import sys, time
started = time.perf_counter()
import functools, json
from qatval.core.environment import prepare_process
prepare_process()
from qatval.cli.main import main
from qatval.run import delivery, models, pipeline
from qatval.train.dataset import SubsetDataset
from qatval.train.evaluation import Evaluator
from qatval.train.trainer import QatTrainer

seconds = {"imports": time.perf_counter() - started}
open_parts = []

def timed(owner, name, part, within=None):
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        if part in open_parts or (within and within not in open_parts):
            return original(*args, **kwargs)
        outer = open_parts[-1] if open_parts else None
        open_parts.append(part)
        began = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            took = time.perf_counter() - began
            open_parts.pop()
            seconds[part] = seconds.get(part, 0.0) + took
            if outer:  # a part's own time is without what is timed inside of it
                seconds[outer] = seconds.get(outer, 0.0) - took

    setattr(owner, name, wrapper)

timed(QatTrainer, "train", "training: forward and backward")
timed(QatTrainer, "_setup_train", "training: set-up")
timed(QatTrainer, "validate", "training: validation")
timed(QatTrainer, "optimizer_step", "training: optimizer, averaging, tracking")
timed(QatTrainer, "save_model", "training: files")
timed(QatTrainer, "save_metrics", "training: files ")
timed(QatTrainer, "save_state", "training: files  ")
timed(SubsetDataset, "load_image", "images: decoding")
timed(SubsetDataset, "__getitem__", "images: augmentation")
timed(Evaluator, "evaluate", "scores before and after training")
timed(delivery, "evaluate_coco", "second protocol")
timed(delivery, "learn_correction", "QC")
timed(models, "reestimate", "BatchNorm statistics")
timed(pipeline, "build_subset", "subset")
code = main(sys.argv[1:])
seconds["all"] = time.perf_counter() - started
print(json.dumps(seconds))
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiles", default=",".join(profile_names()))
    args = parser.parse_args()
    chosen = args.profiles.split(",")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault("YOLO_CONFIG_DIR", temporary)
        data = Path(temporary) / "shapes"
        qatval = "import sys; from qatval.cli.main import main; sys.exit(main())"
        draw = [sys.executable, "-c", qatval, "dataset", "shapes", "--out", str(data)]
        subprocess.run(draw, check=True, cwd=REPOSITORY, capture_output=True)
        for profile in chosen:
            options = f"--variant yolo10n --method baseline,ema,ema+qc --profile {profile}"
            places = ["--run-root", f"{temporary}/{profile}", "--coco-root", str(data)]
            places += ["--cache-dir", f"{temporary}/cache", "--device", "cpu"]
            command = [sys.executable, "-c", RUN, "run", *options.split(), *places]
            started = time.perf_counter()
            done = subprocess.run(
                command, check=True, cwd=REPOSITORY, capture_output=True, text=True
            )
            seconds = json.loads(done.stdout.splitlines()[-1])
            whole = time.perf_counter() - started
            seconds["training: files"] += seconds.pop("training: files ")
            counted = sum(took for part, took in seconds.items() if part != "all")
            seconds["the rest: models, reports, interpreter"] = whole - counted
            found[profile] = {**seconds, "all": whole}
    parts = [part for part in found[chosen[0]] if part != "all"]
    rows = [
        [part, *(f"{found[p][part]:.1f} ({found[p][part] / found[p]['all']:.1%})" for p in chosen)]
        for part in parts
    ]
    rows.append(["whole run", *(f"{found[p]['all']:.1f}" for p in chosen)])
    publish(
        "whole",
        "Where the seconds of a run go",
        "`python benchmarks/whole.py`: `qatval run` on the embedded data, baseline, ema and ema+qc "
        "on one training; seconds (and share), one run each, subset not yet in its cache. "
        "Times of a part are without the parts named beside it that happen within it.\n\n"
        + table(["", *chosen], rows),
    )


if __name__ == "__main__":
    main()
