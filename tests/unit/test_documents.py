"""README and docs/ say what the code does: options, names, links, and the example runs."""

import json
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ROOT / "docs" / "options.md"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# Options of pytest's other plugins, of the scripts in benchmarks/, of other programs.
ELSEWHERE = {"--no-deps", "--dist", "--snapshot-update", "--photographs", "--head"}

of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_tables_of_options_are_those_of_the_parsers():
    page = runpy.run_path(str(OPTIONS.with_suffix(".py")))["page"]()
    assert page == OPTIONS.read_text("utf-8"), "an option changed: run 'make docs'"


@of_every_page
def test_a_page_names_only_options_that_exist(page):
    option = r"(?<![\w-])--[a-z][\w-]+"
    tables = [line for line in OPTIONS.read_text("utf-8").splitlines() if line.startswith("| `-")]
    known = ELSEWHERE.union(*(re.findall(option, line) for line in tables))
    assert set(re.findall(option, page.read_text("utf-8"))) <= known | {"--help"}


@of_every_page
def test_what_a_page_names_is_there(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    files = re.findall(r"(?<![\w/.])(?:src|tests|benchmarks|docs)/[\w./]*\w", text)
    places = [page.parent / link for link in links] + [ROOT / file for file in files]
    assert [str(place) for place in places if not place.exists()] == []
    for name in re.findall(r"`(qatval\.[\w.]+)`", text):
        pkgutil.resolve_name(name)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, write_run, capsys):
    for method, value in (("ema", 0.60), ("ema+qc", 0.64)):
        for seed in range(3):
            write_run(f"{method}-{seed}", method=method, seed=seed, values=(0.58, value))
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGES[0].read_text("utf-8"), re.S)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "yolo10n/shapes/smoke ema+qc 0.640" in printed
    assert "ema+qc is better than ema on 3 of 3 seeds" in printed


def test_the_example_of_the_deployment_page_runs(tmp_path, monkeypatch, capsys):
    """It feeds a network as qatval does, and puts boxes where qatval puts them."""
    onnx, _ = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    import cv2
    import numpy as np

    from qatval.deploy.card import Input
    from qatval.deploy.preprocessing import network_input

    side, (x1, y1, x2, y2) = 32, (3.0, 7.0, 24.0, 25.0)
    node, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [
        node("Gather", ["images", "red"], ["plane"], axis=1),
        node("ReduceMean", ["plane"], ["mean"], keepdims=0),
        node("Mul", ["mean", "shares"], ["scores"]),
        node("Concat", ["boxes", "scores", "labels"], ["detections"], axis=2),
    ]
    constants = {
        "red": np.array(0),
        "shares": np.array([[[1.0], [0.1]]], np.float32),  # the second is too low to be shown
        "boxes": np.array([[[x1, y1, x2, y2]] * 2], np.float32),
        "labels": np.array([[[1.0], [0.0]]], np.float32),
    }
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "red",
        [tensor("images", onnx.TensorProto.FLOAT, [1, 3, side, side])],
        [tensor("detections", onnx.TensorProto.FLOAT, [1, 2, 6])],
        [constant(value, name) for name, value in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 21)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    card = {"class_names": ["a", "b"], "input": {"imgsz": side, "padding": 114}}
    onnx.helper.set_model_props(model, {"qatval": json.dumps(card)})
    onnx.save(model, tmp_path / "model.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    picture[..., 2] //= 2  # red differs from blue
    picture[..., 2] += 120
    cv2.imwrite(str(tmp_path / "image.jpg"), picture)
    monkeypatch.chdir(tmp_path)

    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text("utf-8"), re.S
    )
    assert len(example.splitlines()) <= 30
    exec(example, {})

    planes, at = network_input(cv2.imread("image.jpg"), Input(imgsz=side, batch=1))
    down, across = at.gains
    box = (x1 - at.left) / across, (y1 - at.top) / down, (x2 - at.left) / across
    expected = ["b", f"{planes[0].mean():.2f}", *map(round, (*box, (y2 - at.top) / down))]
    assert capsys.readouterr().out.split() == [str(it) for it in expected]
