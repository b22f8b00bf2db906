"""What must hold exactly, on real trainings of a few steps."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qatval.analysis.runs import LoadedRun
from qatval.core import presets
from qatval.core.errors import QatvalError
from qatval.core.presets import Profile
from qatval.core.progress import Progress
from qatval.core.quantization import Start
from qatval.core.schema import violations
from qatval.core.summary import SUMMARY_NAME, load_summary, read_summary
from qatval.quant.methods import Method, method_names
from qatval.quant.methods import method as named_method
from qatval.quant.methods.averaging import Averaging
from qatval.run import runner
from qatval.run.configuration import RunConfig

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

TINY = Profile(
    dataset="shapes",
    name="smoke",
    epochs=2,
    batch=4,
    imgsz=64,
    train_images=16,
    val_images=8,
    correction_lr=1e-2,
    # Without accumulation every batch is followed by an optimizer step, hence by an averaging step.
    overrides={**presets.profile("shapes", "smoke").overrides, "nbs": 4},
)

Summary = dict[str, Any]
"""The JSON that a run has written."""

RunTiny = Callable[..., dict[str, Summary]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qatval.data.shapes import draw_dataset

    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root, train_images=24, val_images=8, size=64)
    return root


@pytest.fixture(scope="module")
def run_tiny(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunTiny:
    """Run methods together on two epochs of four steps; return their summaries by name."""

    def run(
        methods: Sequence[str | Method],
        *,
        root: Path | None = None,
        progress: Progress | None = None,
        precision: Mapping[str, Any] | None = None,
        fused: bool = True,
        track: bool = True,
        **changes: Any,
    ) -> dict[str, Summary]:
        chosen = tuple(named_method(m) if isinstance(m, str) else m for m in methods)
        variant = presets.variant("yolo10n")
        config = RunConfig(
            variant=variant,
            methods=chosen,
            profile=dataclasses.replace(TINY, **changes),
            quantization=dataclasses.replace(presets.quantization("w4a16"), **(precision or {})),
            seed=0,
            run_root=root or tmp_path_factory.mktemp("runs") / "run",
            coco_root=dataset,
            checkpoint=variant.checkpoint_for("shapes"),
            device="cpu",
            cache_dir=dataset.parent / "cache",
            fused=fused,
            track=track,
        )
        runner.run(config, progress or Progress("tiny", quiet=True))
        files = {m.name: config.root_of(m.name) / SUMMARY_NAME for m in chosen}
        return {name: json.loads(file.read_text("utf-8")) for name, file in files.items()}

    return run


@pytest.fixture(scope="module")
def together(run_tiny: RunTiny) -> dict[str, Summary]:
    """All methods of one training."""
    return run_tiny(method_names())


def measured(summary: Summary) -> dict[str, Any]:
    """Return the summary without what names, places, times and weighs it."""
    kept = {k: v for k, v in summary.items() if k not in ("run_id", "created_at", "timings", "git")}
    # Tables and logs have times in them.
    exact = (".safetensors", "predictions.json", "train_images.txt", "val_images.txt")
    kept["files"] = {k: v for k, v in summary["files"].items() if k.endswith(exact)}
    kept["history"] = [{**epoch, "seconds": None} for epoch in summary["history"]]
    kept["artifacts"] = {k: v for k, v in summary["artifacts"].items() if k != "run_root"}
    unlike = ("trajectory", "peak_memory_mb")
    kept["training"] = {k: v for k, v in summary["training"].items() if k not in unlike}
    return kept


def results(summary: Summary) -> list[list[str]]:
    """Return the rows of ``results.csv`` without the time column."""
    path = Path(summary["artifacts"]["run_root"]) / summary["artifacts"]["results_csv"]
    rows = [line.split(",") for line in path.read_text().splitlines()]
    time = rows[0].index("time")
    return [row[:time] + row[time + 1 :] for row in rows]


@pytest.mark.parametrize("method", method_names())
def test_a_shared_training_gives_what_the_method_alone_gives(
    method: str, together: dict[str, Summary], run_tiny: RunTiny
) -> None:
    """This is at the same time: the same command twice gives the same results on the CPU."""
    alone = run_tiny([method])[method]
    assert measured(alone) == measured(together[method])
    assert results(alone) == results(together[method])


def test_averaging_without_decay_is_the_baseline(
    together: dict[str, Summary], run_tiny: RunTiny
) -> None:
    still = Method((Averaging("ema", max_decay=0.0, max_tau=1.0, window=0.2, ramp=0.1),))
    ema = run_tiny([still])["ema"]
    baseline = together["baseline"]
    assert together["ema"]["method"]["ema"]["effective_decay"] > 0.3
    assert weights(together["ema"]) != weights(together["baseline"])
    assert ema["method"]["ema"]["effective_decay"] == 0.0
    assert ema["method"]["ema"]["codes_differing_from_raw"] == 0.0
    assert ema["metrics"] == baseline["metrics"]
    assert results(ema) == results(baseline)
    assert weights(ema) == weights(baseline)


def test_fused_quantization_gives_what_brevitas_gives_layer_by_layer(
    together: dict[str, Summary], run_tiny: RunTiny
) -> None:
    """Every code, scale, bias and metric, to the last bit."""
    layered = run_tiny(["baseline", "ema"], fused=False)
    for method, summary in layered.items():
        assert summary["training"]["fused"] is False
        assert together[method]["training"]["fused"] is True
        assert weights(summary) == weights(together[method])
        assert results(summary) == results(together[method])


def test_tracking_changes_no_result(together: dict[str, Summary], run_tiny: RunTiny) -> None:
    untracked = run_tiny(["baseline"], track=False)["baseline"]
    assert "oscillation" not in untracked
    assert weights(untracked) == weights(together["baseline"])
    assert results(untracked) == results(together["baseline"])


OTHERS = (
    "fp32",
    "fp32+ema",
    "fp32+ema+qc",
    "dampen",
    "freeze+ema",
    "ptq",
    "ema+bn",
    "qc",
    "baseline",
)


@pytest.fixture(scope="module")
def others(run_tiny: RunTiny) -> dict[str, Summary]:
    """Controls and methods of other trainings, and last one that was run elsewhere as well."""
    return run_tiny(OTHERS)


def test_what_ran_before_changes_no_training(
    together: dict[str, Summary], others: dict[str, Summary]
) -> None:
    assert measured(others["baseline"]) == measured(together["baseline"])
    assert results(others["baseline"]) == results(together["baseline"])


def test_methods_of_one_kind_share_a_training(others: dict[str, Summary]) -> None:
    trainings = {name: s["training"]["trajectory"] for name, s in others.items()}
    assert trainings["ptq"] is None
    assert trainings["fp32"] == trainings["fp32+ema"] == trainings["fp32+ema+qc"]
    assert trainings["baseline"] == trainings["ema+bn"] == trainings["qc"]
    assert len(set(trainings.values())) == 5  # none, float, dampen, freeze, plain


def test_every_method_leaves_evidence(others: dict[str, Summary]) -> None:
    for name, summary in others.items():
        assert violations(summary) == [], name
        assert summary["status"] == "completed-success", name
        root = Path(summary["artifacts"]["run_root"])
        assert (root / summary["artifacts"]["weights"]).is_file()
        assert (root / "summary.md").read_text("utf-8").startswith("# Stable"), name
        layers = summary["batchnorm"]["layers"]
        assert len(layers) == 95
        assert all(0.0 <= layer["kl_mean"] <= layer["kl_max"] for layer in layers)
        assert summary["batchnorm"]["images"] == 16
        peak = summary["training"].get("peak_memory_mb")
        assert (peak is None) == (name == "ptq")
        assert peak is None or f"memory: {peak} MiB at most" in (root / "summary.md").read_text()


def test_the_untrained_model_is_scored_as_a_method(others: dict[str, Summary]) -> None:
    ptq = others["ptq"]
    assert ptq["metrics"]["final_value"] == ptq["metrics"]["ptq_value"]
    assert ptq["training"]["steps"] == 0
    assert "history" not in ptq
    assert ptq["artifacts"]["results_csv"] is None


def test_a_float_control_has_no_quantization(others: dict[str, Summary]) -> None:
    for name in ("fp32", "fp32+ema", "fp32+ema+qc"):
        quantization = others[name]["quantization"]
        assert (quantization["mode"], quantization["weight_bit_width"]) == ("fp32", None)
        assert others[name]["metrics"]["ptq_value"] is None
        assert "oscillation" not in others[name]
        assert others[name]["artifacts"]["weights"].endswith("float.safetensors")
    assert others["fp32+ema"]["method"]["ema"]["effective_decay"] > 0.3
    assert weights(others["fp32+ema"]) != weights(others["fp32"])


def test_a_float_control_is_corrected_as_quantized_models_are(others: dict[str, Summary]) -> None:
    """The same convolutions, learned on as many images, and folded away: no tensor is added."""
    import safetensors.torch

    float_, quantized = others["fp32+ema+qc"], others["qc"]
    learned = float_["method"]["qc"]
    assert learned["enabled"] is True
    assert learned["images"] == quantized["method"]["qc"]["images"]
    assert learned["changes"].keys() == quantized["method"]["qc"]["changes"].keys()
    # Of the head's branches for large objects two tiny steps move nothing.
    moved = [n for n, change in learned["changes"].items() if change["gamma_mean_abs_change"] > 0]
    assert len(moved) > 90
    before = others["fp32+ema"]["metrics"]["final_value"]
    assert float_["metrics"]["before_qc_value"] == before
    corrected, average = (safetensors.torch.load(weights(s)) for s in (float_, others["fp32+ema"]))
    assert corrected.keys() == average.keys()
    differing = {name for name in corrected if not corrected[name].equal(average[name])}
    # BatchNorm takes gamma and beta; the head's outputs, which have none, take them themselves.
    outputs = {name for name in differing if ".bn." not in name}
    assert outputs
    assert all(re.fullmatch(r"model\.23\.\w*cv[23]\.\d\.2\.(weight|bias)", n) for n in outputs)
    assert all(name.endswith((".bn.weight", ".bn.bias")) for name in differing - outputs)


def test_fresh_statistics_change_statistics_alone(
    others: dict[str, Summary], together: dict[str, Summary]
) -> None:
    import safetensors.torch

    fresh, average = (
        safetensors.torch.load(weights(s)) for s in (others["ema+bn"], together["ema"])
    )
    assert fresh.keys() == average.keys()
    differing = {name for name in fresh if not fresh[name].equal(average[name])}
    assert differing
    assert all(name.endswith(("running_mean", "running_var", "tracked")) for name in differing)
    assert (
        others["ema+bn"]["metrics"]["before_bn_value"] == together["ema"]["metrics"]["final_value"]
    )
    fresh_statistics = {"enabled": True, "how": "reestimated", "images": 16}
    assert others["ema+bn"]["method"]["bn"] == fresh_statistics


def test_anchored_statistics_take_no_part_in_the_training(
    together: dict[str, Summary], others: dict[str, Summary], run_tiny: RunTiny
) -> None:
    """The same weights, whose running averages are the only thing that was anchored."""
    import safetensors.torch

    anchored = run_tiny(["baseline", "ema", "fp32"], batchnorm="anchored")
    running = {**together, "fp32": others["fp32"]}
    for name, summary in anchored.items():
        assert summary["training"]["batchnorm"] == "anchored"
        assert running[name]["training"]["batchnorm"] == "running"
        ours, theirs = (safetensors.torch.load(weights(s)) for s in (summary, running[name]))
        differing = {key for key in ours if not ours[key].equal(theirs[key])}
        assert differing
        assert all(key.endswith(("running_mean", "running_var")) for key in differing)
        assert summary["history"][-1]["value"] == summary["metrics"]["final_value"]


def test_oscillation_is_recorded_and_written(others: dict[str, Summary]) -> None:
    summary = others["baseline"]
    oscillation = summary["oscillation"]
    assert oscillation["steps"] == summary["training"]["steps"] == 8
    assert [epoch["epoch"] for epoch in oscillation["epochs"]] == [1, 2]
    assert len(oscillation["layers"]) == 107
    assert 0.0 < oscillation["epochs"][1]["change_rate"] < 1.0
    folder = Path(summary["artifacts"]["run_root"]) / summary["artifacts"]["oscillation_csv"]
    assert folder.read_text().count("\n") == 3
    layers = (folder.parent / "oscillation_layers.csv").read_text().splitlines()
    assert len(layers) == 1 + 2 * 107
    assert layers[-1].split(",")[:2] == ["2", oscillation["layers"][-1]["name"]]


def test_stabilizers_change_the_training_and_say_what_they_did(others: dict[str, Summary]) -> None:
    assert weights(others["dampen"]) != weights(others["baseline"])
    (freezing,) = others["freeze+ema"]["method"]["stabilizers"]
    assert freezing["implementation"] == "qatval.quant.freezing:Freezing"
    assert 0.0 < freezing["report"]["frozen"] < 0.1


@pytest.mark.parametrize(
    ("precision", "mode"),
    [
        ({"weight_bit_width": 3, "scale": "per-channel"}, "w3a16"),
        ({"weight_bit_width": 2, "scaling": "statistics"}, "w2a16"),
        ({"activation_bit_width": 4, "boundary_bit_width": 8}, "w4a4"),
    ],
)
def test_every_precision_runs_from_end_to_end(
    precision: dict[str, Any], mode: str, run_tiny: RunTiny
) -> None:
    """That scores agree after reloading from integer codes is checked by the run itself."""
    runs = run_tiny(["baseline", "ema+qc", "ema+bn"], precision=precision)
    for summary in runs.values():
        assert violations(summary) == []
        assert summary["status"] != "incomplete"
        quantization = summary["quantization"]
        assert quantization["mode"] == mode
        bits = {layer["bits"] for layer in quantization["coverage"]["layers"]}
        assert bits == {None, precision.get("weight_bit_width", 4)} | (
            {8} if "boundary_bit_width" in precision else set()
        )
    layered = run_tiny(["baseline"], precision=precision, fused=False)["baseline"]
    assert weights(layered) == weights(runs["baseline"])


def weights(summary: Summary) -> bytes:
    root = Path(summary["artifacts"]["run_root"])
    return (root / summary["artifacts"]["weights"]).read_bytes()


def test_every_delivered_model_scores_the_same_when_loaded_again(
    together: dict[str, Summary], dataset: Path, tmp_path: Path
) -> None:
    import torch

    from qatval.data.subset import build_subset
    from qatval.train.evaluation import evaluator
    from qatval.train.models import load_checkpoint

    subset = build_subset(
        dataset, train_images=16, val_images=8, seed=0, cache_dir=dataset.parent / "cache"
    )
    arguments = {**TINY.overrides, "epochs": 2, "batch": 4, "imgsz": 64, "device": "cpu"}
    scorer = evaluator(subset, arguments, torch.device("cpu"), tmp_path)
    for method, summary in together.items():
        root = Path(summary["artifacts"]["run_root"])
        model = load_checkpoint(root / summary["artifacts"]["weights"])
        value = scorer.evaluate(model).value
        assert value == summary["metrics"]["final_value"], method
    # Without QC this is also what the latent weights scored within the training.
    for method in ("baseline", "ema"):
        summary = together[method]
        assert summary["metrics"]["final_value"] == summary["history"][-1]["value"]


def test_correction_is_recorded_and_counts_as_the_final_value(
    together: dict[str, Summary],
) -> None:
    corrected, averaged = together["ema+qc"], together["ema"]
    assert corrected["metrics"]["before_qc_value"] == averaged["metrics"]["final_value"]
    assert len(corrected["method"]["qc"]["changes"]) == 107
    assert corrected["method"]["qc"]["images"] == 16
    assert corrected["history"] == averaged["history"]


def test_run_root_has_what_the_contract_lists(together: dict[str, Summary]) -> None:
    for method, summary in together.items():
        root = Path(summary["artifacts"]["run_root"])
        assert read_summary(root)[1] == summary
        assert (root / "summary.md").read_text().startswith("# ")
        assert (root / "dataset" / "train_images.txt").read_text().count("\n") == 16
        folder = root / "ultralytics" / f"yolo10n-{method}-smoke-seed0"
        assert (folder / "args.yaml").is_file()
        assert (folder / "results.csv").read_text().count("\n") == 3
        assert list((folder / "tensorboard").glob("events.*"))
        assert {p.name for p in (folder / "weights").iterdir()} == {
            "last.safetensors",
            "best.safetensors",
            "integer.safetensors",
        }
        assert "Starting training for 2 epochs" in (root / "ultralytics.log").read_text()
        assert not list(root.parent.glob(".training-*"))


class InterruptedProgress(Progress):
    """Presses Ctrl-C when the second epoch begins."""

    def step(self, done: int, **values: float) -> None:
        if done == 5:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_what_was_measured(run_tiny: RunTiny, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_tiny(
            ["baseline", "ema"],
            root=tmp_path / "run",
            progress=InterruptedProgress("tiny", quiet=True),
        )
    for method in ("baseline", "ema"):
        summary = load_summary(tmp_path / "run" / method)
        assert summary.status == "incomplete"
        assert summary.error is not None
        assert summary.error.stage == "training"
        assert summary.error.message.startswith("interrupted by SIGINT after 4 steps")
        assert len(summary.history or ()) == 1
        folder = tmp_path / "run" / method / "ultralytics" / f"yolo10n-{method}-smoke-seed0"
        assert (folder / "results.csv").read_text().count("\n") == 2
    assert not list((tmp_path / "run").glob(".training-*"))


def test_a_training_that_diverges_is_a_result(run_tiny: RunTiny) -> None:
    """A learning rate beyond reason: completed-failed, not a crash and not a recovery."""
    overrides = {**TINY.overrides, "optimizer": "SGD", "lr0": 1.0, "warmup_epochs": 0.0}
    summary = run_tiny(["baseline"], overrides=overrides, epochs=3)["baseline"]
    assert summary["status"] == "completed-failed"
    # What is left of it differs between processors: nothing, or next to nothing.
    assert (summary["metrics"]["final_value"] or 0.0) < 0.01 * summary["metrics"]["fp32_value"]


def test_progress_without_a_terminal_is_one_line_per_milestone(run_tiny: RunTiny) -> None:
    stream = io.StringIO()
    with Progress("tiny", stream=stream) as progress:
        run_tiny(["baseline"], progress=progress)
    lines = stream.getvalue().splitlines()
    assert [line.split(" | ")[1].split(":")[0] for line in lines] == [
        "FP32 checkpoint",
        "untrained w4a16 model",
        "start of the training",
        "epoch 1/2",
        "epoch 2/2",
        "baseline",
    ]


class ExhaustedProgress(Progress):
    """Runs out of memory in the second step."""

    def step(self, done: int, **values: float) -> None:
        if done == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_out_of_memory_names_a_batch_to_try(run_tiny: RunTiny, tmp_path: Path) -> None:
    with pytest.raises(QatvalError, match="out of memory: try --batch 2"):
        run_tiny(
            ["baseline"],
            root=tmp_path / "run",
            progress=ExhaustedProgress("tiny", quiet=True),
        )
    summary = load_summary(tmp_path / "run")
    assert summary.status == "incomplete"
    assert summary.error is not None
    assert summary.error.message == "out of memory: try --batch 2"


def test_the_batch_is_never_halved_silently(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics catches memory errors of the first epoch and goes on with half the batch."""
    from qatval.train.trainer import QatTrainer

    def exhausted(self: Any, batch: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(QatTrainer, "preprocess_batch", exhausted)
    with pytest.raises(QatvalError, match="try --batch 2"):
        run_tiny(["baseline"], root=tmp_path / "run")
    assert load_summary(tmp_path / "run").status == "incomplete"


def test_a_disputed_measurement_costs_the_success_and_nothing_else(
    run_tiny: RunTiny, together: dict[str, Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qatval.run import delivery

    monkeypatch.setattr(delivery, "TOLERANCE", -1.0)  # no two values are as close as that
    disputed = run_tiny(method_names())
    for name, summary in disputed.items():
        assert summary["status"] == "completed-failed"
        assert [check["name"] for check in summary["failed_checks"]] == ["protocols"]
        assert "by pycocotools" in summary["failed_checks"][0]["detail"]
        assert summary["metrics"]["final_value"] == together[name]["metrics"]["final_value"]
        root = Path(summary["artifacts"]["run_root"])
        assert (root / summary["artifacts"]["weights"]).is_file()
        assert read_summary(root)[1] == summary
        assert "**The value is disputed**" in (root / "summary.md").read_text()
        assert LoadedRun(root, *read_summary(root)).outcome == "disputed"


def test_the_series_begins_with_the_start(together: dict[str, Summary]) -> None:
    for summary in together.values():
        metrics = summary["metrics"]
        series = [metrics["start_value"], *(epoch["value"] for epoch in summary["history"])]
        series.append(metrics["final_value"])
        assert metrics["best_value"] == max(series)
        assert metrics["best_epoch"] == series.index(max(series))
        assert summary["quantization"]["start"] == {"scale": "max", "statistics": "shifted"}


def test_without_a_start_the_training_starts_from_the_naive_model(run_tiny: RunTiny) -> None:
    kept = {"start": Start("max", "kept")}
    metrics = run_tiny(["baseline"], precision=kept)["baseline"]["metrics"]
    assert metrics["start_value"] == metrics["ptq_value"]


@pytest.fixture(scope="module")
def untrained_arms(run_tiny: RunTiny) -> dict[str, Summary]:
    return run_tiny(["baseline", "shift", "ptq", "ptq+shift", "ptq+gptq", "ptq+gptq+bn"])


def test_post_training_arms_train_nothing(untrained_arms: dict[str, Summary]) -> None:
    for name in ("ptq", "ptq+shift", "ptq+gptq", "ptq+gptq+bn"):
        summary = untrained_arms[name]
        assert violations(summary) == []
        assert summary["method"]["training"] == "none"
        assert summary["training"]["steps"] == 0
        assert "history" not in summary
        assert (summary["method"]["rounding"] is not None) is ("gptq" in name)
        assert summary["quantization"]["coverage"]["max_levels_per_scale"] <= 15
    assert untrained_arms["ptq+gptq"]["method"]["rounding"] == {"by": "gptq", "images": 32}
    assert untrained_arms["ptq+gptq+bn"]["method"]["bn"]["how"] == "reestimated"


def test_the_start_is_the_arm_that_is_called_so(untrained_arms: dict[str, Summary]) -> None:
    start = untrained_arms["baseline"]["metrics"]["start_value"]
    assert untrained_arms["ptq+shift"]["metrics"]["final_value"] == pytest.approx(start, abs=1e-3)


def test_statistics_are_shifted_after_a_training_too(untrained_arms: dict[str, Summary]) -> None:
    baseline, shifted = untrained_arms["baseline"], untrained_arms["shift"]
    assert shifted["training"]["trajectory"] == baseline["training"]["trajectory"]
    assert shifted["metrics"]["before_bn_value"] == baseline["metrics"]["final_value"]
    assert shifted["method"]["bn"] == {"enabled": True, "how": "shifted", "images": 16}


def test_gptq_rounds_otherwise_on_the_same_scales(untrained_arms: dict[str, Summary]) -> None:
    from safetensors.torch import load_file

    def weights(name: str) -> dict[str, Any]:
        summary = untrained_arms[name]
        root = Path(summary["artifacts"]["run_root"])
        return load_file(root / summary["artifacts"]["weights"])

    nearest, rounded = weights("ptq"), weights("ptq+gptq")
    differing = total = 0
    for name, tensor in nearest.items():
        if name.endswith(".codes"):
            differing += int((tensor != rounded[name]).sum())
            total += tensor.numel()
        elif name.endswith(".scale"):
            assert (tensor == rounded[name]).all()
    assert 0.02 < differing / total < 0.9


def test_a_teacher_takes_the_place_of_the_labels(run_tiny: RunTiny) -> None:
    found = run_tiny(["baseline", "distill", "fp32+distill"])
    taught, alone = found["distill"], found["fp32+distill"]
    teacher = {"weight": 1.0, "task": 0.0, "hold_statistics": True}
    assert taught["method"]["teacher"] == alone["method"]["teacher"] == teacher
    assert found["baseline"]["method"]["teacher"] is None
    assert taught["training"]["trajectory"] != found["baseline"]["training"]["trajectory"]
    for summary in (taught, alone):
        assert violations(summary) == []
        assert summary["status"] == "completed-success"
