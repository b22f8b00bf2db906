"""What families of detectors say, held to what Ultralytics builds of their architectures."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from qatval.core import presets
from qatval.quant.layers import batchnorm_after, coverage, insert_quantizers
from qatval.train.distillation import DistilledCriterion
from qatval.train.models import build_model

NAMES = ("a", "b", "c")
VARIANTS = [presets.variant(name) for name in presets.variant_names() if name.endswith("n")]

# Their names as ids would make them tests of what -k yolo10n asks for.
pytestmark = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.architecture)


def test_the_patterns_name_the_layers_that_they_say(variant: presets.Variant) -> None:
    """The last convolutions are those that no BatchNorm follows; every exemption meets a layer."""
    detector = variant.detector
    model: Any = build_model(variant.architecture, NAMES)
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    exempt = [name for name in convs if any(fnmatchcase(name, p) for p in detector.exempt)]
    assert len(exempt) == len(detector.exempt)
    last = [name for name in convs if batchnorm_after(model, name) is None and name not in exempt]
    found = [name for name in convs if any(fnmatchcase(name, p) for p in detector.boundary)]
    assert found == [convs[0], *last]
    rows = [m for name, m in model.named_modules() if fnmatchcase(name, detector.class_layers)]
    assert rows
    assert all(isinstance(m, nn.Conv2d) and m.out_channels == len(NAMES) for m in rows)
    others = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m not in rows]
    assert not [m for m in others if m.out_channels == len(NAMES)]


def test_every_layer_is_quantized_or_exempt(variant: presets.Variant) -> None:
    model = build_model(variant.architecture, NAMES)
    spec = presets.quantization("paper", variant.detector)
    layers = insert_quantizers(model, spec)
    assert layers == coverage(model, spec)
    assert {layer.bits for layer in layers} == {4, 8, *([None] if variant.detector.exempt else [])}


def test_it_is_scored_by_the_head_that_it_names(variant: presets.Variant) -> None:
    model: Any = build_model(variant.architecture, NAMES).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # new heads are copies of each other
            parameter.add_(0.1 * torch.randn_like(parameter))
        answer, raw = model(torch.rand(1, 3, 64, 64))
    heads = variant.detector.heads(raw)
    if variant.detector.nms_iou is None:
        scored = raw[variant.detector.head]
        assert answer.shape == (1, 84, 6)
        assert answer[0, 0, 4] == scored["scores"].sigmoid().max()
    else:
        (scored,) = heads
        assert answer.shape == (1, 4 + len(NAMES), 84)
        assert torch.equal(answer[:, 4:], scored["scores"].sigmoid())
    assert any(head is scored for head in heads)


def test_a_settled_loss_is_that_of_the_last_epoch(variant: presets.Variant) -> None:
    torch.manual_seed(0)
    model: Any = build_model(variant.architecture, NAMES).train()
    model.args = get_cfg(DEFAULT_CFG, {"epochs": 3})
    settled, trained = model.init_criterion(), model.init_criterion()
    variant.detector.settle(settled)
    for _ in range(2):
        if hasattr(trained, "update"):
            trained.update()
    predictions, batch = model(torch.rand(2, 3, 64, 64)), labels()
    assert torch.equal(settled(predictions, batch)[0], trained(predictions, batch)[0])


def test_a_teacher_speaks_to_every_output_of_every_head(variant: presets.Variant) -> None:
    torch.manual_seed(0)
    model: Any = build_model(variant.architecture, NAMES)
    model.args = get_cfg(DEFAULT_CFG, {"epochs": 2})
    teacher = build_model(variant.architecture, NAMES)
    model.criterion = DistilledCriterion(model, teacher, weight=1.0, task=0.0)
    model.criterion.update()
    batch = labels() | {"img": torch.rand(2, 3, 64, 64)}
    model.train().loss(batch)[0].sum().backward()
    outputs = [
        (name, module.weight.grad)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and name.endswith(".2")
    ]
    assert len(outputs) == 6 * len(variant.detector.heads(model(batch["img"])))
    assert [name for name, grad in outputs if grad is None or not grad.any()] == []


def labels() -> dict[str, Any]:
    return {
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]]),
        "batch_idx": torch.tensor([0.0, 1.0]),
    }
