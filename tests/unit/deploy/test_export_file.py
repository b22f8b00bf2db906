"""A detector's ONNX file: what is in it, that it runs, and that nothing else is ever written."""

from __future__ import annotations

import ast
import dataclasses
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from qatval.core.errors import QatvalError
from qatval.core.presets import quantization
from qatval.deploy.card import KEY, Card
from qatval.deploy.export import agreement
from qatval.deploy.export.description import card_of
from qatval.deploy.export.folding import folded
from qatval.deploy.export.graph import stored_codes
from qatval.deploy.export.onnx_file import Written, export_onnx
from qatval.deploy.export.tracing import Answering, with_one_head
from qatval.quant.integer import integer_layers, to_integer
from qatval.quant.layers import calibrate_activations, insert_quantizers
from qatval.testing import build_summary
from qatval.train.models import build_model

NAMES = ("circle", 'it\'s a "square"', "Dreieck, spitz")
SIDE = 64


@dataclasses.dataclass(frozen=True)
class Exported:
    """A quantized detector and its file."""

    model: Any
    card: Card
    file: Path
    written: Written

    def graph(self) -> onnx.ModelProto:
        return onnx.load(self.file)

    def answer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = onnxruntime.InferenceSession(self.file, options)
        return np.asarray(session.run(None, {"images": images})[0])


def detector() -> Any:
    """A new yolo10n whose BatchNorm does something; 3 bits, ends at 8, inputs at 4."""
    torch.manual_seed(0)
    model = build_model("yolov10n.yaml", NAMES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None
            module.running_mean.normal_(std=0.1)
    insert_quantizers(model, dataclasses.replace(quantization("paper"), weight_bit_width=3))
    calibrate_activations(model, [torch.rand(1, 3, SIDE, SIDE)])
    return to_integer(model.eval())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = detector()
    summary = build_summary(changes={"quantization": {"coverage": None}})
    card = card_of(summary, model, weights_sha256="0" * 64, imgsz=SIDE, batch=None)
    file = tmp_path_factory.mktemp("export") / "a folder" / "model.onnx"
    return Exported(model, card, file, export_onnx(model, card, file))


def test_the_file_holds_the_runs_codes(exported: Exported) -> None:
    graph = exported.graph()
    onnx.checker.check_model(graph, full_check=True)
    codes, layers = stored_codes(graph), integer_layers(exported.model)
    assert all(np.array_equal(codes[name], layers[name].codes.numpy()) for name in codes)
    # what is left out is the head that does not answer
    left_out = layers.keys() - codes.keys()
    assert left_out == {
        name for name in layers if name.startswith(("model.23.cv2", "model.23.cv3"))
    }


def test_each_layer_has_the_type_of_its_bits(exported: Exported) -> None:
    kinds = {
        t.name: t.data_type for t in exported.graph().graph.initializer if t.name.endswith(".codes")
    }
    ends = {name for name, kind in kinds.items() if kind == TensorProto.INT8}
    assert exported.card.weight_bits == {"3": len(kinds) - 7, "8": 7}
    assert exported.card.activation_bits == {"4": len(kinds) - 7, "8": 7}
    assert "model.0.conv.codes" in ends
    assert len(ends) == 7
    assert set(kinds.values()) == {TensorProto.INT4, TensorProto.INT8}


def test_bits_are_those_that_the_run_recorded(exported: Exported) -> None:
    """A layer of more bits may by chance have small codes only."""
    summary = build_summary()
    assert summary.quantization.coverage is not None
    recorded = [layer for layer in summary.quantization.coverage.layers if layer.bits]
    card = card_of(summary, exported.model, weights_sha256="0" * 64)
    assert card.weight_bits["4"] == len(recorded) == 3


def test_at_another_size_the_run_reports_nothing(exported: Exported) -> None:
    summary = build_summary()
    own, other = (
        card_of(summary, exported.model, weights_sha256="0" * 64, imgsz=side).origin.value
        for side in (summary.model.imgsz, summary.model.imgsz // 2)
    )
    assert own == summary.metrics.final_value is not None
    assert other is None


def test_every_number_of_images_gives_what_one_gives(exported: Exported) -> None:
    images = np.random.default_rng(1).random((3, 3, SIDE, SIDE), np.float32)
    together = exported.answer(images)
    alone = [exported.answer(image[None])[0] for image in images]
    assert together.shape == (3, 84, 6)
    assert np.allclose(together, alone, atol=1e-4)
    assert not np.allclose(alone[0], alone[1], atol=1e-4)


def test_the_metadata_hold_the_card_and_ultralytics_keys(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported.file)
    metadata = session.get_modelmeta().custom_metadata_map
    assert msgspec.json.decode(metadata[KEY], type=Card) == exported.card
    assert ast.literal_eval(metadata["names"]) == dict(enumerate(NAMES))
    assert ast.literal_eval(metadata["imgsz"]) == [SIDE, SIDE]
    assert ast.literal_eval(metadata["args"]) == {"batch": 1, "dynamic": True}
    assert {k: metadata[k] for k in ("task", "stride", "batch", "end2end", "channels")} == {
        "task": "detect",
        "stride": "32",
        "batch": "1",
        "end2end": "True",
        "channels": "3",
    }


def test_the_file_says_nothing_of_this_machine(exported: Exported) -> None:
    content = exported.file.read_bytes()
    for trace in (str(Path.home()), str(Path(__file__).parents[3]), ".py", "site-packages"):
        assert trace.encode() not in content
    assert not any(node.doc_string or node.metadata_props for node in exported.graph().graph.node)


def test_sizes_are_those_of_the_file(exported: Exported) -> None:
    assert exported.written.bytes == exported.file.stat().st_size
    codes = stored_codes(exported.graph()).values()
    assert exported.written.float_bytes > 4 * sum(c.size for c in codes)
    assert exported.written.bytes < 0.2 * exported.written.float_bytes


def test_ultralytics_takes_the_file(exported: Exported) -> None:
    from ultralytics import YOLO

    image = np.full((40, 64, 3), 200, np.uint8)
    (result,) = YOLO(exported.file, task="detect").predict(
        image, imgsz=SIDE, conf=1e-5, verbose=False
    )
    assert result.names == dict(enumerate(NAMES))
    assert len(result.boxes) > 0


def changed(exported: Exported, initializer: str, change: Any) -> onnx.ModelProto:
    """The graph with something changed in one initializer."""
    graph = exported.graph()
    tensor = next(t for t in graph.graph.initializer if t.name == initializer)
    array = onnx.numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(array), initializer))
    return graph


def first_other(array: NDArray[Any]) -> NDArray[Any]:
    """A head's biases start alike, and of what moves all sides of a box alike it knows nothing."""
    array.flat[0] = 1 if array.flat[0] != 1 else 2
    return array


def test_other_codes_are_refused(exported: Exported) -> None:
    single = with_one_head(exported.model)
    _, layers = folded(single)
    agreement.require_same_codes(exported.graph(), layers)
    graph = changed(exported, "model.3.conv.codes", first_other)
    with pytest.raises(QatvalError, match=r"weights of 'model\.3\.conv'"):
        agreement.require_same_codes(graph, layers)


@pytest.mark.parametrize("part", ["scale", "high"])
def test_another_rounding_is_refused(exported: Exported, part: str) -> None:
    _, layers = folded(with_one_head(exported.model))
    images = agreement.seeded_images(1, SIDE)
    agreement.require_same_rounding(exported.graph(), layers, images)
    graph = changed(exported, f"model.2.cv1.conv.input.{part}", lambda array: array / 3)
    with pytest.raises(QatvalError, match=r"round the input of 'model\.2\.cv1\.conv'"):
        agreement.require_same_rounding(graph, layers, images)


def test_another_answer_is_refused(exported: Exported) -> None:
    single = with_one_head(exported.model)
    for layer in integer_layers(single).values():
        layer.input_scale = None
    against: Any = ("candidates", lambda x: Answering(single)(x)[-1])
    images = agreement.seeded_images(1, SIDE)
    agreement.require_same_answer(exported.graph(), *against, images, channels=2)
    for name in ("model.23.one2one_cv2.0.2.bias", "model.23.one2one_cv3.2.2.bias"):
        graph = changed(exported, name, first_other)
        with pytest.raises(QatvalError, match=r"boxes differ by .* and scores by"):
            agreement.require_same_answer(graph, *against, images, channels=2)


def test_a_missing_package_is_one_line(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(QatvalError, match=r"^an export needs onnxscript.*'qatval\[export\]'$"):
        export_onnx(exported.model, exported.card, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_head_for_nms_answers_with_every_anchor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("yolo11n.yaml", NAMES).eval()
    card = card_of(build_summary("fp32"), model, weights_sha256="0" * 64, imgsz=SIDE)
    assert (card.output.head, card.output.nms_iou) == ("one2many", 0.7)
    assert (card.storage, card.weight_bits) == ("float", {})
    file = tmp_path / "model.onnx"
    written = export_onnx(model, card, file)
    assert written.bytes == written.float_bytes == file.stat().st_size
    images = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(images))[0].numpy()
    found = onnxruntime.InferenceSession(file).run(None, {"images": images})[0]
    assert found.shape == (1, 4 + len(NAMES), 84)
    assert abs(found - wanted).max() < 1e-3
