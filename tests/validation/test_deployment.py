"""What is shipped is what was certified: exported files, scored in processes without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs qatval[export]")
pytest.importorskip("onnxruntime", reason="needs qatval[export]")

from safetensors.numpy import load_file  # noqa: E402

from qatval.analysis.evidence import additional_files, file_differences  # noqa: E402
from qatval.analysis.rules import judge_deployment  # noqa: E402
from qatval.analysis.thresholds import load as load_thresholds  # noqa: E402
from qatval.core.progress import Progress  # noqa: E402
from qatval.core.schema import violations  # noqa: E402
from qatval.core.summary import RunSummary, read_summary  # noqa: E402
from qatval.data.shapes import draw_dataset  # noqa: E402
from qatval.deploy.runtimes import installed  # noqa: E402
from qatval.run import runner  # noqa: E402
from qatval.run.configuration import configure  # noqa: E402
from qatval.testing.scenarios import PHOTOGRAPHS_IMGSZ  # noqa: E402
from qatval.testing.settings import Settings  # noqa: E402

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

# Per-channel scales at 4 bits are those of the trained models below.
PRECISIONS: dict[str, dict[str, Any]] = {
    "w4-per-tensor": {"precision": {"scale": "per-tensor"}},
    "paper": {"quantization": "paper"},
    "w3": {"precision": {"weight_bit_width": 3}},
}
QUIET = Progress("deployment", quiet=True)

# Whatever there is on another machine, torch need not be.
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "ultralytics", "brevitas", "onnx"):
            raise ImportError(f"{name} is not for this process")
sys.meta_path.insert(0, Refuse())
from qatval.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root)
    return root


def run(root: Path, methods: str, where: dict[str, Any], options: dict[str, Any]) -> list[Path]:
    config = configure(
        variant="yolo10n",
        methods=methods.split(","),
        profile="smoke",
        run_root=root,
        device="cpu",
        export=True,
        **where,
        **options,
    )
    runner.run(config, QUIET)
    return [config.root_of(method.name) for method in config.methods]


def exported(root: Path, summary: RunSummary) -> Path:
    assert summary.deployment is not None
    assert summary.deployment.exported.file is not None
    return root / summary.deployment.exported.file


def check(root: Path) -> None:
    """Hold a run with an exported file to everything that is promised of one."""
    summary, recorded = read_summary(root)
    assert violations(recorded) == []
    assert not summary.failed_checks
    assert summary.files is not None
    assert not file_differences(root, summary.files)
    assert not [*additional_files(root, summary.files)]
    assert summary.deployment is not None
    for file in (summary.deployment.exported, summary.deployment.fp32):
        assert [runtime.name for runtime in file.runtimes] == [*installed()]
    for runtime in summary.deployment.exported.runtimes:
        assert runtime.agreement is not None
        assert runtime.agreement.detections > 0
        if summary.quantization.activation_bit_width is None:
            assert runtime.agreement.unmatched == 0
        assert sum(runtime.executed.values()) > 0
    limits = load_thresholds().limits
    judged = judge_deployment(summary, limits)
    assert [str(one) for one in judged if one.failed] == []
    if summary.quantization.library is not None:
        assert {one.name for one in judged} == {"exported-value", "exported-size"}
        check_codes(root, summary)


def check_codes(root: Path, summary: RunSummary) -> None:
    """Hold the codes in the file to the run's, read without any of our code."""
    assert summary.artifacts.weights is not None
    weights = load_file(root / summary.artifacts.weights)
    codes = {name: value for name, value in weights.items() if name.endswith(".codes")}
    graph = onnx.load(exported(root, summary)).graph
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8)
    }
    weighted = {
        node.input[0]: node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    layers = {
        dequantized.removesuffix(".weight"): stored[name] for name, dequantized in weighted.items()
    }
    assert len(layers) == 83  # of 107: the head that does not answer is not shipped
    for name, array in layers.items():
        np.testing.assert_array_equal(array.astype(np.int8), codes[f"{name}.codes"], name)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_untrained_models_of_every_precision(precision: str, shapes: Path, tmp_path: Path) -> None:
    (root,) = run(tmp_path / "run", "ptq", {"coco_root": shapes}, PRECISIONS[precision])
    check(root)


def test_trained_models_and_controls_and_the_number_again_elsewhere(
    shapes: Path, tmp_path: Path
) -> None:
    roots = run(tmp_path / "runs", "ema+qc,fp32", {"coco_root": shapes}, {})
    for root in roots:
        check(root)

    summary = read_summary(roots[0])[0]
    file = exported(roots[0], summary).rename(tmp_path / "shipped.onnx")
    where = ["--coco-root", str(shapes), "--out", "score.json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "score", str(file), *where],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "score.json").read_bytes())["value"]
    assert again == pytest.approx(summary.metrics.final_value, abs=0.001)


def test_a_real_detector_on_photographs(qatval_settings: Settings, tmp_path: Path) -> None:
    real = qatval_settings.real_data
    if missing := real.missing("yolo10n"):
        pytest.skip("; ".join(missing))
    where = {"coco_root": real.coco_root, "checkpoint": real.checkpoint("yolo10n")}
    (root,) = run(tmp_path / "run", "ptq+shift", where, {"imgsz": PHOTOGRAPHS_IMGSZ})
    check(root)
