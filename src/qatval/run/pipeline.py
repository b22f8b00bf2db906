"""The work of a run: subset -> FP32 model -> untrained quantized model -> trainings -> scores."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qatval.core.errors import QatvalError, UsageError
from qatval.core.progress import Progress
from qatval.core.quantization import Start
from qatval.data.folder import write_dataset_folder
from qatval.data.subset import build_subset
from qatval.quant.layers import calibrate_activations, insert_quantizers
from qatval.quant.methods import Averaging, Method, Recipe, calibration_images
from qatval.quant.methods import method as named_method
from qatval.quant.start import start
from qatval.run.configuration import RunConfig
from qatval.run.delivery import artifact_folder, score
from qatval.run.root import RunRoot, publish
from qatval.run.trained import Prepared, Trained, Untrained
from qatval.train import LOGGER
from qatval.train.calibration import CalibrationImages
from qatval.train.evaluation import evaluator
from qatval.train.models import CheckpointInfo, load_pretrained, save_checkpoint
from qatval.train.trainer import QatTrainer, train
from qatval.train.trajectory import TrainingPlan, read_trajectory

Roots = Mapping[str, RunRoot]

_WAITING = "other methods"  # the stage of a run whose turn it is not


def execute(config: RunConfig, roots: Roots, work: Path, progress: Progress) -> None:
    """Run the trainings that the methods take, score each method and finish its run root.

    Args:
        config: What to run.
        roots: Claimed run root of each method, by name.
        work: Folder for what belongs to no single root; the caller removes it.
        progress: Where to show how far it is.

    Raises:
        QatvalError: For whatever the user can change.
    """
    with _logging_to(root.path / "ultralytics.log" for root in roots.values()):
        prepared = _prepare(config, roots, work, progress)
        _enter(roots, progress, _WAITING)
        for recipe, methods in config.trainings():
            sharing = {method.name: roots[method.name] for method in methods}
            trained = Trained(prepared)
            if recipe is not None:
                trained = _train(config, recipe, methods, sharing, prepared, work, progress)
            for method in methods:
                score(config, method, roots[method.name], trained, progress)


def _enter(roots: Roots, progress: Progress, stage: str, steps: int | None = None) -> None:
    for root in roots.values():
        root.enter(stage)
    progress.stage(stage, steps)


def _prepare(config: RunConfig, roots: Roots, work: Path, progress: Progress) -> Prepared:
    """Get ready what all trainings have in common: data, devices, the models before training."""
    _enter(roots, progress, "subset")
    profile, variant, spec = config.profile, config.variant, config.quantization
    device_name = config.device or ("0" if torch.cuda.is_available() else "cpu")
    device = _device(device_name)
    threads = torch.get_num_threads()  # as many as cores, or OMP_NUM_THREADS
    averaging = _averaging(config.methods)
    subset = build_subset(
        config.coco_root,
        train_images=profile.train_images,
        val_images=profile.val_images,
        seed=config.seed,
        image_list=config.image_list,
        cache_dir=config.cache_dir,
    )
    for root in roots.values():
        write_dataset_folder(subset, root.path / "dataset")
    arguments = {
        **profile.overrides,
        "epochs": profile.epochs,
        "batch": profile.batch,
        "imgsz": profile.imgsz,
        "seed": config.seed,
        "device": device_name,
        "workers": config.workers,
        "amp": config.amp,
    }
    scorer = evaluator(subset, arguments, device, work)
    images = CalibrationImages(
        subset, calibration_images(), arguments, seed=config.seed, device=device
    )

    _enter(roots, progress, "FP32 checkpoint")
    model = load_pretrained(config.checkpoint, variant.architecture, subset.class_names)
    fp32_value = scorer.evaluate(model.to(device)).value
    progress.milestone(f"FP32 checkpoint: mAP50-95 {fp32_value:.4f}")
    naive, started = None, None
    if any(method.quantized for method in config.methods):
        _enter(roots, progress, "untrained model")
        info = CheckpointInfo("latent", variant.architecture, subset.class_names, spec)
        quantized = copy.deepcopy(model)
        layers = insert_quantizers(quantized, spec)
        if spec.calibrated:
            calibrate_activations(quantized, images.pixels())
        value = scorer.evaluate(quantized).value
        progress.milestone(f"untrained {spec.mode} model: mAP50-95 {value:.4f}")
        naive = started = Untrained(work / "untrained.safetensors", value, layers)
        save_checkpoint(naive.path, quantized, info)
        if spec.start != Start():
            _enter(roots, progress, "start of training")
            quantized = start(quantized, model, spec.start, images.pixels)
            value = scorer.evaluate(quantized).value
            progress.milestone(f"start of the training: mAP50-95 {value:.4f}")
            started = Untrained(work / "start.safetensors", value, layers)
            save_checkpoint(started.path, quantized, info)
    return Prepared(
        reference=model,
        subset=subset,
        scorer=scorer,
        images=images,
        device=device,
        arguments=arguments,
        averaging=averaging,
        threads=threads,
        fp32_value=fp32_value,
        naive=naive,
        started=started,
    )


def _train(
    config: RunConfig,
    recipe: Recipe,
    methods: Sequence[Method],
    roots: Roots,
    prepared: Prepared,
    work: Path,
    progress: Progress,
) -> Trained:
    profile, subset = config.profile, prepared.subset
    steps = profile.epochs * math.ceil(len(subset.train) / profile.batch)
    _enter(roots, progress, "training", steps)
    checkpoint = config.checkpoint
    if recipe.quantized:
        assert prepared.started is not None
        checkpoint = prepared.started.path
    plan = TrainingPlan(
        subset=str(subset.directory),
        architecture=config.variant.architecture,
        checkpoint=str(checkpoint.resolve()),
        quantization=config.quantization if recipe.quantized else None,
        averaging=prepared.averaging,
        arms=tuple(dict.fromkeys(method.arm for method in methods)),
        threads=prepared.threads,
        fused=config.fused,
        stabilizers=recipe.stabilizers,
        track=config.track and recipe.quantized,
        teacher=recipe.teacher,
        batchnorm=profile.batchnorm,
        reference=str(config.checkpoint.resolve()),
    )
    identity = uuid.uuid4().hex
    directory = work / identity
    try:
        trajectory = train(directory, plan, prepared.arguments, _callbacks(progress))
    finally:
        _publish(config, methods, directory, roots)
    _enter(roots, progress, _WAITING)
    return Trained(prepared, trajectory, identity)


def _averaging(methods: Sequence[Method]) -> Averaging:
    """Return how the training's one average is made; methods that share it must agree.

    It is made for baseline too, where nobody looks at it: a training is the same whoever asks.
    """
    wanted = {method.averaging for method in methods if method.averaging is not None}
    if len(wanted) > 1:
        raise UsageError(
            "methods with different averaging cannot share a training: run them one by one"
        )
    averaging = wanted.pop() if wanted else named_method("ema").averaging
    assert averaging is not None
    return averaging


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    indices = name.split(",")
    if not all(index.isdigit() for index in indices):
        raise UsageError(f"--device must be cpu, 0 or a list such as 0,1, got '{name}'")
    visible = torch.cuda.device_count()
    if max(map(int, indices)) >= visible:
        raise QatvalError(
            f"--device {name} asks for a GPU that is not there ({visible} visible): use "
            "--device cpu, or see 'qatval doctor'"
        )
    return torch.device("cuda", int(indices[0]))


def _callbacks(progress: Progress) -> dict[str, Callable[[QatTrainer], None]]:
    steps = 0

    def on_batch(trainer: QatTrainer) -> None:
        nonlocal steps
        steps += 1
        progress.step(
            steps,
            epoch=trainer.epoch + 1,
            loss=float(trainer.loss.detach()),
            **{f"mAP {arm}": value for arm, value in trainer.values().items()},
        )

    def on_epoch(trainer: QatTrainer) -> None:
        values = ", ".join(f"{arm} {value:.4f}" for arm, value in trainer.values().items())
        progress.milestone(f"epoch {trainer.epoch + 1}/{trainer.epochs}: mAP50-95 {values}")

    return {"on_train_batch_end": on_batch, "on_fit_epoch_end": on_epoch}


def _publish(config: RunConfig, methods: Sequence[Method], directory: Path, roots: Roots) -> None:
    """Give each root its arm's files, also those of a training that did not get to its end."""
    left = directory / "training"
    for method in methods:
        root = roots[method.name]
        folder = artifact_folder(config, method, root)
        publish(left, folder, ["args.yaml", "oscillation.csv", "oscillation_layers.csv"])
        publish(left / method.arm, folder, ["results.csv", "tensorboard", "weights"])
        if (directory / "trajectory.json").exists():
            history = read_trajectory(directory).history[method.arm]
            root.summary["history"] = [asdict(record) for record in history]


@contextlib.contextmanager
def _logging_to(files: Iterable[Path]) -> Iterator[None]:
    """Send Ultralytics' messages to the run roots' log files."""
    handlers: list[Any] = [logging.FileHandler(file, encoding="utf-8") for file in files]
    for handler in handlers:
        LOGGER.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()
