"""The work of a run: subset -> FP32 model -> untrained quantized model -> trainings -> scores."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from qatval.core.errors import QatvalError, UsageError
from qatval.core.progress import Progress
from qatval.core.quantization import Start
from qatval.core.stability import doubt_of_checkpoint
from qatval.data.folder import write_dataset_folder
from qatval.data.subset import build_subset
from qatval.quant.layers import calibrate_activations, insert_quantizers
from qatval.quant.methods import Method, calibration_images
from qatval.quant.methods.part import Training
from qatval.quant.start import start
from qatval.run.configuration import RunConfig
from qatval.run.delivery import deliver
from qatval.run.deployment import Deployment
from qatval.run.folder import RunFolder, publish
from qatval.run.models import QuantizedCheckpoint, Setup, TrainedModels
from qatval.run.workspace import Workspace
from qatval.train.calibration import CalibrationImages
from qatval.train.dataset import refuse_unfit
from qatval.train.evaluation import evaluator
from qatval.train.models import CheckpointInfo, load_checkpoint, load_matched, save_checkpoint
from qatval.train.patches import logging_to
from qatval.train.trainer import QatTrainer, train
from qatval.train.trajectory import (
    OWN_FILES,
    SHARED_FILES,
    TrainingPlan,
    read_trajectory,
)

Folders = Mapping[str, RunFolder]

_log = logging.getLogger(__name__)

_WAITING = "other methods"  # the stage of a run whose turn it is not


def execute(config: RunConfig, folders: Folders, workspace: Workspace, progress: Progress) -> None:
    """Run the trainings that the methods take, deliver each method and finish its folder.

    Args:
        config: What to run.
        folders: Claimed run folder of each method that is not finished yet, by name.
        workspace: For what belongs to no single run; the caller removes it.
        progress: Where to show how far it is.

    Raises:
        QatvalError: For whatever the user can change.
    """
    with logging_to(folder.log for folder in folders.values()):
        setup = _set_up(config, folders, workspace, progress)
        _enter(folders, progress, _WAITING)
        for number, (training, methods) in enumerate(config.trainings()):
            sharing = {method.name: method for method in methods if method.name in folders}
            if not sharing:
                continue
            trained = TrainedModels(setup)
            if training is not None:
                directory = workspace.training(number)
                trained = _train(config, training, methods, folders, setup, directory, progress)
            for name, method in sharing.items():
                deliver(config, method, folders[name], trained, progress)


def _enter(folders: Folders, progress: Progress, stage: str, steps: int | None = None) -> None:
    for folder in folders.values():
        folder.enter(stage)
    progress.stage(stage, steps)


def _set_up(config: RunConfig, folders: Folders, workspace: Workspace, progress: Progress) -> Setup:
    """Get ready what all trainings have in common: data, devices, the models before training."""
    _enter(folders, progress, "subset")
    profile, variant, spec = config.profile, config.variant, config.quantization
    device_name = config.device or ("0" if torch.cuda.is_available() else "cpu")
    device = torch_device(device_name)
    threads = torch.get_num_threads()  # as many as cores, or OMP_NUM_THREADS
    subset = build_subset(
        config.coco_root,
        train_images=profile.train_images,
        val_images=profile.val_images,
        seed=config.seed,
        image_list=config.image_list,
        cache_dir=config.cache_dir,
    )
    workspace.hold({"device": device_name, "threads": threads, "dataset": subset.identity})
    for folder in folders.values():
        write_dataset_folder(subset, folder.dataset)
    arguments = profile.arguments(
        seed=config.seed, device=device_name, workers=config.workers, amp=config.amp
    )
    scorer = evaluator(subset, arguments, device, workspace.directory)
    images = CalibrationImages(
        subset, calibration_images(), arguments, seed=config.seed, device=device
    )

    _enter(folders, progress, "FP32 checkpoint")
    model, classes = load_matched(config.checkpoint, variant.architecture, subset.class_names)
    if classes.said:
        _log.warning("%s: %s", config.checkpoint, classes.said)
    refuse_unfit(
        len(subset.train),
        images.count,
        arguments,
        devices=len(device_name.split(",")),
        trains=any(training is not None for training, _ in config.trainings()),
    )
    fp32_value = scorer.evaluate(model.to(device)).value
    progress.milestone(f"FP32 checkpoint: mAP50-95 {fp32_value:.4f}")
    if doubt := doubt_of_checkpoint(fp32_value):  # said now too: the training may take days
        _log.warning("%s: %s", config.checkpoint, doubt)
    deployment = None
    if config.export:
        _enter(folders, progress, "export of the FP32 checkpoint")
        deployment = Deployment(
            copy.deepcopy(model).cpu(),
            config.checkpoint,
            next(iter(folders.values())).summary,
            subset=subset,
            directory=workspace.directory,
            threads=threads,
        )
    naive, started = None, None
    if any(method.quantized for method in config.methods):
        _enter(folders, progress, "untrained model")
        info = CheckpointInfo("latent", variant.architecture, subset.class_names, spec)
        quantized = copy.deepcopy(model)
        layers = insert_quantizers(quantized, spec)
        if spec.calibrated:
            calibrate_activations(quantized, images.pixels())
        value = scorer.evaluate(quantized).value
        progress.milestone(f"untrained {spec.mode} model: mAP50-95 {value:.4f}")
        naive = started = QuantizedCheckpoint(
            workspace.directory / "untrained.safetensors", value, layers
        )
        save_checkpoint(naive.path, quantized, info)
        if spec.start != Start():
            _enter(folders, progress, "start of training")
            path = workspace.directory / "start.safetensors"
            if not path.exists():  # on a GPU it may come out another way: a training keeps its own
                save_checkpoint(path, start(quantized, model, spec.start, images.pixels), info)
            value = scorer.evaluate(load_checkpoint(path, device)).value
            progress.milestone(f"start of the training: mAP50-95 {value:.4f}")
            started = QuantizedCheckpoint(path, value, layers)
    return Setup(
        reference=model,
        classes=classes,
        subset=subset,
        evaluator=scorer,
        images=images,
        device=device,
        arguments=arguments,
        averaging=config.averaging,
        threads=threads,
        fp32_value=fp32_value,
        naive=naive,
        start=started,
        deployment=deployment,
    )


def _train(
    config: RunConfig,
    training: Training,
    methods: Sequence[Method],
    folders: Folders,
    setup: Setup,
    directory: Path,
    progress: Progress,
) -> TrainedModels:
    folders = {method.name: folders[method.name] for method in methods if method.name in folders}
    profile, subset = config.profile, setup.subset
    steps = profile.epochs * math.ceil(len(subset.train) / profile.batch)
    _enter(folders, progress, "training", steps)
    checkpoint = config.checkpoint
    if training.quantized:
        assert setup.start is not None
        checkpoint = setup.start.path
    plan = TrainingPlan(
        subset=str(subset.directory),
        architecture=config.variant.architecture,
        checkpoint=str(checkpoint.resolve()),
        quantization=config.quantization if training.quantized else None,
        averaging=setup.averaging,
        scored=tuple(dict.fromkeys(method.weights for method in methods)),
        threads=setup.threads,
        fused=config.fused,
        stabilizers=training.stabilizers,
        track=config.track and training.quantized,
        teacher=training.teacher,
        batchnorm=profile.batchnorm,
        reference=str(config.checkpoint.resolve()),
        start_value=setup.start_value(methods[0]),
        fp32_value=setup.fp32_value,
    )
    try:
        trajectory = train(directory, plan, setup.arguments, _callbacks(progress))
    except BaseException:
        with contextlib.suppress(Exception):  # why the training ended is what matters
            _publish(methods, directory, folders)
        raise
    _publish(methods, directory, folders)
    _enter(folders, progress, _WAITING)
    return TrainedModels(setup, trajectory, directory.name)


def torch_device(name: str) -> torch.device:
    """Return the device of an option's value, the first of a list.

    Raises:
        QatvalError: If it is none, or asks for a GPU that is not there.
    """
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
    def on_batch(trainer: QatTrainer) -> None:
        progress.step(
            trainer.batches_done,
            epoch=trainer.epoch + 1,
            loss=float(trainer.loss.detach()),
            **{f"mAP {weights}": value for weights, value in trainer.values().items()},
        )

    def on_epoch(trainer: QatTrainer) -> None:
        values = ", ".join(f"{weights} {value:.4f}" for weights, value in trainer.values().items())
        progress.milestone(f"epoch {trainer.epoch + 1}/{trainer.epochs}: mAP50-95 {values}")

    return {"on_train_batch_end": on_batch, "on_fit_epoch_end": on_epoch}


def _publish(methods: Sequence[Method], directory: Path, folders: Folders) -> None:
    """Give each folder the files of its weights, also of a training that did not get to its end."""
    left = directory / "training"
    for method in methods:
        if (folder := folders.get(method.name)) is None:
            continue
        publish(left, folder.training, SHARED_FILES)
        publish(left / method.weights, folder.training, OWN_FILES)
        if (directory / "trajectory.json").exists():
            folder.record(history=tuple(read_trajectory(directory).history[method.weights]))
