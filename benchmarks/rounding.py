"""Which rounding serves a YOLOv10n that nothing trains: Brevitas' algorithms on photographs.

    python benchmarks/rounding.py [--data DIR] [--imgsz 320] [--device cpu]

Every algorithm rounds the same weights to the same scales on the same images; each result is scored
as it is and with shifted BatchNorm statistics. Needs a folder as QATVAL_REAL_DATA names one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from qatval.core.environment import prepare_process

prepare_process()

import torch  # noqa: E402
from brevitas.graph.gpfq import GPFQ, gpfq_mode  # noqa: E402
from brevitas.graph.gptq import GPTQ, gptq_mode  # noqa: E402
from brevitas.graph.qronos import Qronos  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from measure import publish, table  # noqa: E402
from photographs import photographs, real_data  # noqa: E402
from qatval.core import presets  # noqa: E402
from qatval.data.subset import build_subset  # noqa: E402
from qatval.quant.anchoring import shift_statistics  # noqa: E402
from qatval.quant.gptq import PerColumn, at_most  # noqa: E402
from qatval.quant.layers import insert_quantizers  # noqa: E402
from qatval.quant.quantized_conv import quantized_layers  # noqa: E402
from qatval.train.calibration import CalibrationImages  # noqa: E402
from qatval.train.evaluation import evaluator  # noqa: E402
from qatval.train.models import load_pretrained  # noqa: E402

IMAGES = (32, 128)


class _Gptq(PerColumn, GPTQ):  # type: ignore[misc]
    pass


class _Gpfq(PerColumn, GPFQ):  # type: ignore[misc]
    pass


class _Qronos(PerColumn, Qronos):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, num_blocks=1, **kwargs)


def gptq(model: nn.Module, ordered: bool) -> Any:
    """Let GPTQ round a model."""
    return gptq_mode(
        model,
        create_weight_orig=False,
        num_blocks=1,
        act_order=ordered,
        gptq_class=_Gptq,
        device="same",
    )


def gpfq(model: nn.Module, ordered: bool) -> Any:
    """Let greedy path following round a model."""
    return gpfq_mode(model, act_order=ordered, algorithm_impl=_Gpfq, device="same")


def qronos(model: nn.Module, ordered: bool) -> Any:
    """Let Qronos round a model."""
    return gpfq_mode(model, act_order=ordered, algorithm_impl=_Qronos, device="same")


ALGORITHMS = {how.__name__: how for how in (gptq, gpfq, qronos)}


@torch.no_grad()
def rounded(
    model: nn.Module, how: Callable[[nn.Module, bool], Any], ordered: bool, images: Iterable[Tensor]
) -> nn.Module:
    """Return a rounded copy of a fake-quantized model."""
    found = deepcopy(model).eval()
    for _, layer in quantized_layers(found):
        layer.weight.data = layer.weight.data.contiguous()
    batches = list(images)
    with how(found, ordered) as mode:
        for _ in range(mode.num_layers):
            for batch in batches:
                mode.model(batch)
            mode.update()
    for _, layer in quantized_layers(found):
        if hasattr(layer, "weight_orig"):
            del layer.weight_orig
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=real_data())
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--only", choices=ALGORITHMS, nargs="+", default=list(ALGORITHMS))
    args = parser.parse_args()
    coco_root, checkpoint = photographs(args.data)
    device = torch.device("cpu" if args.device == "cpu" else f"cuda:{args.device}")
    subset = build_subset(coco_root, train_images=None, val_images=None, seed=0)
    arguments: dict[str, Any] = {"batch": 16, "imgsz": args.imgsz, "workers": 0, "epochs": 1}
    with tempfile.TemporaryDirectory() as nothing:
        scorer = evaluator(subset, arguments, device, Path(nothing))
    reference = load_pretrained(checkpoint, "yolov10n.yaml", subset.class_names).to(device)
    images = CalibrationImages(subset, len(subset.train), arguments, seed=0, device=device)

    def scores(model: nn.Module) -> list[str]:
        shifted = shift_statistics(model, reference, images.pixels)
        return [f"{scorer.evaluate(m).value:.3f}" for m in (model, shifted)]

    rows = [["FP32", f"{scorer.evaluate(reference).value:.3f}", "as it is", ""]]
    for bits in (4, 3):
        spec = dataclasses.replace(presets.quantization("w4a16"), weight_bit_width=bits)
        naive = deepcopy(reference).cpu()
        insert_quantizers(naive, spec)
        naive.to(device)
        rows.append([f"W{bits}, nearest", *scores(naive), ""])
        print(rows[-1], flush=True)
        for how, ordered, count in itertools.product(
            [ALGORITHMS[name] for name in args.only], (False, True), args.images
        ):
            name = f"W{bits}, {how.__name__}{', ordered' if ordered else ''}, {count} images"
            started = time.monotonic()
            try:
                found = rounded(naive, how, ordered, at_most(images.pixels(), count))
            except (AssertionError, RuntimeError) as error:
                rows.append([name, f"{type(error).__name__}: {str(error)[:80]}", "", ""])
            else:
                took = time.monotonic() - started
                rows.append([name, *scores(found), f"{took:.0f}"])
            print(rows[-1], flush=True)
    text = (
        f"`python benchmarks/rounding.py`: mAP 50-95 of yolo10n on {len(subset.val)} photographs "
        f"at {args.imgsz} px, nothing trained, one scale per channel from max|w|; device "
        f"{args.device}. Brevitas' algorithms, with the two parts of `quant/gptq.py` done "
        '"per column"; ordered: columns of larger inputs first (`act_order`). Shifted: BatchNorm '
        f"statistics moved on {images.count} images.\n\n"
        f"{table(['rounding', 'as it is', 'shifted', 'seconds'], rows)}"
    )
    publish("rounding", "Which rounding serves a YOLOv10n that nothing trains", text)


if __name__ == "__main__":
    main()
