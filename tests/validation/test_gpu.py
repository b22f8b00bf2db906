"""What only a GPU can show: its own kernels quantize as Brevitas does, runs keep to their share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qatval.testing.settings import Settings

if TYPE_CHECKING:  # collecting scenarios loads no torch
    import torch

pytestmark = [pytest.mark.gpu, pytest.mark.smoke]


@pytest.fixture
def gpu(qatval_settings: Settings) -> torch.device:
    import torch

    if not torch.cuda.is_available():
        missing = pytest.fail if qatval_settings.strict_resources else pytest.skip
        missing("no GPU")
    return torch.device("cuda", torch.cuda.current_device())


def test_a_gpu_quantizes_weights_as_brevitas_does(gpu: torch.device) -> None:
    """Values and gradients of yolo10n's weights to the last bit, scales but for their sums."""
    import torch

    from qatval.core.presets import quantization
    from qatval.quant.fused import FusedQuantizer
    from qatval.quant.layers import insert_quantizers
    from qatval.quant.quantized_conv import quantized_layers
    from qatval.train.models import build_model

    model = build_model("yolov10n.yaml", [str(number) for number in range(80)]).to(gpu)
    insert_quantizers(model, quantization("w4a16"))
    layers = [layer for _, layer in quantized_layers(model)]
    upstream = [torch.randn_like(layer.weight) for layer in layers]
    expected = [layer.quant_weight().value for layer in layers]
    torch.autograd.backward(expected, upstream)
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = FusedQuantizer(model).quantize()
    torch.autograd.backward(found, upstream)

    assert len(layers) == 107
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for name, grad in wanted.items():
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        if name.endswith("conv.weight"):
            assert torch.equal(parameter.grad, grad), name
        else:
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-3)


def test_a_gpu_learns_the_correction_that_autograd_learns(gpu: torch.device) -> None:
    """Gradients to gamma, beta and the input, in both layouts of the activations."""
    import torch
    from torch import nn

    from qatval.quant.correction import CorrectedConv2d

    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, padding=1).to(gpu)
    bn = nn.BatchNorm2d(16).to(gpu).eval()
    nn.init.uniform_(bn.running_var, 0.5, 2.0)
    corrected = CorrectedConv2d(conv, bn)
    # The two convolve with other weights: TensorFloat-32 would round each in its own way.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(4, 8, 9, 9, device=gpu).to(memory_format=layout).requires_grad_()
            plain = [p.detach().clone().requires_grad_() for p in (corrected.gamma, corrected.beta)]
            h = conv(x) * plain[0][:, None, None] + plain[1][:, None, None]
            upstream = torch.randn(4, 16, 9, 9, device=gpu)
            wanted = torch.autograd.grad(bn(h), (x, *plain), upstream)
            learned = (x, corrected.gamma, corrected.beta)
            found = torch.autograd.grad(corrected(x), learned, upstream)
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_run_keeps_to_its_share_of_a_gpu(gpu: torch.device) -> None:
    """What ``--runs-per-gpu`` relies on."""
    import torch

    total = torch.cuda.mem_get_info(gpu)[1]
    torch.cuda.set_per_process_memory_fraction(0.25, gpu)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(total // 2, dtype=torch.uint8, device=gpu)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
