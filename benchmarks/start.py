"""Where a 4-bit and a 3-bit YOLOv10n starts on photographs, by what is done before the first step.

    python benchmarks/start.py [--data DIR] [--imgsz 320]

Every granularity, every start of the scales and every treatment of BatchNorm statistics, on two
numbers of calibration images; nothing is trained. Needs a folder as QATVAL_REAL_DATA names one
(photographs in COCO's layout, a yolov10n checkpoint that knows their classes).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any, get_args

from qatval.core.environment import prepare_process

prepare_process()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from measure import publish, table  # noqa: E402
from photographs import photographs, real_data  # noqa: E402
from qatval.core import presets  # noqa: E402
from qatval.core.quantization import Start, StartScale  # noqa: E402
from qatval.data.subset import build_subset  # noqa: E402
from qatval.quant.batchnorm import reestimate, statistics, tracking  # noqa: E402
from qatval.quant.layers import insert_quantizers  # noqa: E402
from qatval.quant.start import start  # noqa: E402
from qatval.train.calibration import CalibrationImages  # noqa: E402
from qatval.train.evaluation import evaluator  # noqa: E402
from qatval.train.models import load_pretrained  # noqa: E402

CALIBRATION = (64, 128)


def blended(model: nn.Module, fresh: nn.Module) -> nn.Module:
    """Return a copy with statistics half way to fresh ones."""
    found = copy.deepcopy(model)
    other = dict(tracking(fresh))
    for name, layer in tracking(found):
        for kept, new in zip(statistics(layer), statistics(other[name]), strict=True):
            kept.lerp_(new, 0.5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=real_data())
    parser.add_argument("--imgsz", type=int, default=320)
    args = parser.parse_args()
    coco_root, checkpoint = photographs(args.data)
    subset = build_subset(coco_root, train_images=None, val_images=None, seed=0)
    arguments: dict[str, Any] = {"batch": 16, "imgsz": args.imgsz, "workers": 0, "epochs": 1}
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as nothing:
        scorer = evaluator(subset, arguments, cpu, Path(nothing))
    images = {n: CalibrationImages(subset, n, arguments, seed=0, device=cpu) for n in CALIBRATION}
    float_model = load_pretrained(checkpoint, "yolov10n.yaml", subset.class_names)

    def score(model: nn.Module) -> str:
        return f"{scorer.evaluate(model).value:.3f}"

    rows = [
        [
            "FP32",
            score(float_model),
            *(score(reestimate(float_model, images[n].pixels())) for n in CALIBRATION),
            "",
            *("as kept" for _ in CALIBRATION),
        ]
    ]
    for bits, scale, how in itertools.product(
        (4, 3), ("per-channel", "per-tensor"), get_args(StartScale)
    ):
        spec = dataclasses.replace(
            presets.quantization("w4a16"), weight_bit_width=bits, scale=scale
        )
        naive = copy.deepcopy(float_model)
        insert_quantizers(naive, spec)

        def started(statistics: str, n: int, naive: Any = naive, how: Any = how) -> nn.Module:
            return start(naive, float_model, Start(how, statistics), images[n].pixels)

        fresh = {n: started("reestimated", n) for n in CALIBRATION}
        kept = started("kept", CALIBRATION[0])
        rows.append(
            [
                f"W{bits} {scale}, {how}",
                score(kept),
                *(score(fresh[n]) for n in CALIBRATION),
                score(blended(kept, fresh[CALIBRATION[-1]])),
                *(score(started("shifted", n)) for n in CALIBRATION),
            ]
        )
        print(rows[-1], flush=True)
    header = [
        "weights, scales from",
        "kept",
        *(f"re-estimated on {n}" for n in CALIBRATION),
        f"half way to those of {CALIBRATION[-1]}",
        *(f"shifted on {n}" for n in CALIBRATION),
    ]
    text = (
        f"`python benchmarks/start.py`: mAP 50-95 of yolo10n on {len(subset.val)} photographs at "
        f"{args.imgsz} px before any training, by what BatchNorm statistics become on so many of "
        f"{len(subset.train)} others. Dataset {subset.dataset_name}.\n\n{table(header, rows)}"
    )
    publish("start", "Where a quantized model starts", text)


if __name__ == "__main__":
    main()
