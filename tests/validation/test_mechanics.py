"""What must hold exactly, on real trainings of a few steps."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qatval import config as presets
from qatval import runner
from qatval.config import Averaging, Method, Profile, RunConfig
from qatval.errors import QatvalError
from qatval.progress import Progress
from qatval.record import Summary, load_summary

pytestmark = [pytest.mark.cpu, pytest.mark.smoke]

TINY = Profile(
    dataset="shapes",
    name="smoke",
    epochs=2,
    batch=8,
    imgsz=64,
    train_images=16,
    val_images=8,
    correction_lr=1e-2,
    # Without accumulation every batch is followed by an optimizer step, hence by an averaging step.
    overrides={**presets.profile("shapes", "smoke").overrides, "nbs": 8},
)

RunTiny = Callable[..., dict[str, Summary]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qatval.data.shapes import draw_dataset

    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root, train_images=24, val_images=8, size=64)
    return root


@pytest.fixture(scope="module")
def run_tiny(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunTiny:
    """Run methods together on two epochs of two steps; return their summaries by name."""

    def run(
        methods: Sequence[str | Method],
        *,
        root: Path | None = None,
        progress: Progress | None = None,
        fused: bool = True,
        **changes: Any,
    ) -> dict[str, Summary]:
        chosen = tuple(presets.method(m) if isinstance(m, str) else m for m in methods)
        variant = presets.variant("yolo10n")
        config = RunConfig(
            variant=variant,
            methods=chosen,
            profile=dataclasses.replace(TINY, **changes),
            quantization=presets.quantization("w4a16"),
            seed=0,
            run_root=root or tmp_path_factory.mktemp("runs") / "run",
            coco_root=dataset,
            checkpoint=variant.checkpoint_for("shapes"),
            device="cpu",
            cache_dir=dataset.parent / "cache",
            fused=fused,
        )
        summaries = runner.run(config, progress or Progress("tiny", quiet=True))
        return {m.name: summary for m, summary in zip(chosen, summaries, strict=True)}

    return run


@pytest.fixture(scope="module")
def together(run_tiny: RunTiny) -> dict[str, Summary]:
    """All methods of one training."""
    return run_tiny(presets.method_names())


def measured(summary: Summary) -> dict[str, Any]:
    """Return the summary without what names, places and times it."""
    kept = {k: v for k, v in summary.items() if k not in ("run_id", "created_at", "timings", "git")}
    kept["history"] = [{**epoch, "seconds": None} for epoch in summary["history"]]
    kept["artifacts"] = {k: v for k, v in summary["artifacts"].items() if k != "run_root"}
    kept["training"] = {k: v for k, v in summary["training"].items() if k != "trajectory"}
    return kept


def results(summary: Summary) -> list[list[str]]:
    """Return the rows of ``results.csv`` without the time column."""
    path = Path(summary["artifacts"]["run_root"]) / summary["artifacts"]["results_csv"]
    rows = [line.split(",") for line in path.read_text().splitlines()]
    time = rows[0].index("time")
    return [row[:time] + row[time + 1 :] for row in rows]


@pytest.mark.parametrize("method", presets.method_names())
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
    still = Method("ema", averaging=Averaging(max_decay=0.0, max_tau=1.0, window=0.2, ramp=0.1))
    ema = run_tiny([still])["ema"]
    baseline = together["baseline"]
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
    arguments = {**TINY.overrides, "epochs": 2, "batch": 8, "imgsz": 64, "device": "cpu"}
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
        assert load_summary(root) == summary
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
        if done == 3:
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
        assert summary["status"] == "incomplete"
        assert summary["error"]["stage"] == "training"
        assert summary["error"]["message"] == "interrupted"
        assert len(summary["history"]) == 1
        folder = tmp_path / "run" / method / "ultralytics" / f"yolo10n-{method}-smoke-seed0"
        assert (folder / "results.csv").read_text().count("\n") == 2
    assert not list((tmp_path / "run").glob(".training-*"))


def test_a_training_that_diverges_is_a_result(run_tiny: RunTiny) -> None:
    """A learning rate beyond reason: completed-failed, not a crash and not a recovery."""
    overrides = {**TINY.overrides, "optimizer": "SGD", "lr0": 1.0, "warmup_epochs": 0.0}
    summary = run_tiny(["baseline"], overrides=overrides, epochs=3)["baseline"]
    assert summary["status"] == "completed-failed"
    assert summary["metrics"]["final_value"] in (0.0, None)


def test_progress_without_a_terminal_is_one_line_per_milestone(run_tiny: RunTiny) -> None:
    stream = io.StringIO()
    with Progress("tiny", stream=stream) as progress:
        run_tiny(["baseline"], progress=progress)
    lines = stream.getvalue().splitlines()
    assert [line.split(" | ")[1].split(":")[0] for line in lines] == [
        "FP32 checkpoint",
        "untrained W4 model",
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
    with pytest.raises(QatvalError, match="out of memory: try --batch 4"):
        run_tiny(
            ["baseline"],
            root=tmp_path / "run",
            progress=ExhaustedProgress("tiny", quiet=True),
        )
    summary = load_summary(tmp_path / "run")
    assert summary["status"] == "incomplete"
    assert summary["error"]["message"] == "out of memory: try --batch 4"


def test_the_batch_is_never_halved_silently(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics catches memory errors of the first epoch and goes on with half the batch."""
    from qatval.train.trainer import QatTrainer

    def exhausted(self: Any, batch: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(QatTrainer, "preprocess_batch", exhausted)
    with pytest.raises(QatvalError, match="try --batch 4"):
        run_tiny(["baseline"], root=tmp_path / "run")
    assert load_summary(tmp_path / "run")["status"] == "incomplete"
