"""The training itself; this module and `qatval.train.loop` know Ultralytics' trainer.

One training yields one *trajectory* of raw weights. Two kinds of weights are scored along it:
``raw``, the weights themselves, and ``ema``, their moving average. Averaging takes no part in the
gradient steps, so both belong to the same trajectory and their differences are paired. What
does take part, a `Stabilizer`, makes a trajectory of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from msgspec.structs import asdict
from torch import distributed as dist
from torch import nn
from ultralytics.utils import DEFAULT_CFG, RANK

from qatval.core.detectors import detector_of
from qatval.core.environment import peak_resident_mb
from qatval.data.subset import open_subset
from qatval.quant.anchoring import Anchor
from qatval.quant.averaging import WeightAverage, unwrapped
from qatval.quant.batchnorm import tracking
from qatval.quant.fused import fuse_quantization, quantized_once
from qatval.quant.latent import LatentWeights
from qatval.quant.methods import calibration_images
from qatval.quant.methods.part import Weights
from qatval.quant.oscillation import OscillationTracker
from qatval.quant.quantized_conv import scale_parameters
from qatval.quant.stabilizing import Stabilizer
from qatval.train import state
from qatval.train.calibration import CalibrationImages
from qatval.train.conditions import record_conditions, refuse_other
from qatval.train.dataset import SubsetDataset
from qatval.train.distillation import DistilledCriterion
from qatval.train.evaluation import Evaluation, Evaluator, same_randomness
from qatval.train.kept_weights import KeptWeights
from qatval.train.loop import ResumableTrainer
from qatval.train.models import CheckpointInfo, Kind, load_pretrained, starting_model
from qatval.train.patches import own_setup
from qatval.train.recording import EpochLog
from qatval.train.trajectory import (
    TrainingPlan,
    Trajectory,
    finished,
    read_plan,
    read_trajectory,
    write,
)

# What Ultralytics does by itself and qatval does elsewhere, or not at all.
_FIXED_ARGUMENTS: Mapping[str, Any] = {
    "task": "detect",
    "mode": "train",
    "data": "qatval",
    "rect": False,
    "val": True,
    "plots": False,
    "save": True,
    "patience": 0,  # never stop early
    "deterministic": True,
    "exist_ok": True,
    "verbose": False,
}

_NAME = "training"  # the folder in a work directory that Ultralytics is told of


def train(
    directory: Path,
    plan: TrainingPlan,
    arguments: Mapping[str, Any],
    callbacks: Mapping[str, Callable[[QatTrainer], None]],
) -> Trajectory:
    """Run a training, or what is left of it, and return what it left in ``directory``.

    A training that a signal, an error or the end of its process has interrupted goes on from its
    latest state, see `qatval.train.state`; one that is complete is not run again.

    Args:
        directory: Work directory, made if it does not exist.
        plan: What to train.
        arguments: Ultralytics' training arguments (epochs, batch, imgsz, seed, device, ...).
        callbacks: Ultralytics event -> function, called in this process only.

    Raises:
        QatvalError: If the device runs out of memory, naming a batch size to try; if the directory
            holds a training that was begun with another plan or other arguments, or damaged files.
        Interrupted: If a signal has come; the state is saved.
    """
    directory = directory.resolve()
    for partial in directory.rglob(".*.partial"):  # of a process that was killed
        partial.unlink()
    trajectory = finished(directory)
    if trajectory is not None or state.steps_done(directory) is not None:
        refuse_other(directory, plan, arguments)
    else:
        shutil.rmtree(directory / _NAME, ignore_errors=True)  # of one that got nowhere
        record_conditions(directory, plan, arguments)
    write(directory, plan)
    if trajectory is None:
        model = plan.architecture
        place = {"model": model, "project": str(directory), "name": _NAME}
        nms = None if detector_of(model).nms_iou else False
        trainer = QatTrainer(overrides={**arguments, **_FIXED_ARGUMENTS, **place, "nms": nms})
        if not trainer.ddp:
            for event, function in callbacks.items():
                trainer.add_callback(event, function)
        trainer.train()
        trajectory = read_trajectory(directory)
    state.remove(directory)
    return replace(trajectory, directory=str(directory / _NAME))


class QatTrainer(ResumableTrainer):
    """Ultralytics' trainer with fake-quantized weights, scored as they are and averaged."""

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
    ) -> None:
        """Read the plan beside the save directory, then start as Ultralytics does.

        Attributes:
            plan, subset: What is trained and on what.
            log: What is recorded by epoch.
            kept: The weights that it leaves.
            best_values: Of all weights that are scored.
            stabilizers, tracker: What takes part in the steps and what watches them.
            memory_before: Peak memory in MiB of the processes before an interruption.
            stopped: Why the training ends before its last epoch, or None.
        """
        assert overrides is not None
        self._work = Path(overrides["project"])
        self.plan = read_plan(self._work)
        self.subset = open_subset(Path(self.plan.subset))
        self.best_values: dict[Weights, float] = {}
        self.stabilizers: list[Stabilizer] = []
        self.tracker: OscillationTracker | None = None
        self.memory_before: int | None = None
        self.stopped: str | None = None
        self._evaluations: dict[Weights, Evaluation] = {}
        self._anchor: Anchor | None = None
        super().__init__(cfg, overrides, _callbacks)
        self.log = EpochLog(self.save_dir, self.plan.scored)
        spec = self.plan.quantization
        kind: Kind = "float" if spec is None else "latent"
        info = CheckpointInfo(kind, self.plan.architecture, self.subset.class_names, spec)
        self.kept = KeptWeights(self.save_dir, info, self._model_of)
        # Ultralytics leaves a core idle on CPU, which costs nearly half the speed on two cores.
        torch.set_num_threads(self.plan.threads)

    # -- what is trained on -----------------------------------------------------------------

    def get_dataset(self) -> dict[str, Any]:
        """Describe the subset; Ultralytics' own dataset files are not used."""
        names = dict(enumerate(self.subset.class_names))
        return {"train": "train", "val": "val", "nc": len(names), "names": names, "channels": 3}

    def build_dataset(
        self, img_path: str, mode: str = "train", batch: int | None = None
    ) -> SubsetDataset:
        """Present one split of the subset; ``img_path`` is its name."""
        return SubsetDataset(
            self.subset.train if img_path == "train" else self.subset.val,
            self.subset.class_names,
            self.args,
            batch=batch or self.batch_size,
            augment=mode == "train",
        )

    # -- what is trained --------------------------------------------------------------------

    def setup_model(self) -> None:
        """Load what is trained, with its quantizers, before optimizer, DDP and average."""
        plan = self.plan
        path = None if plan.checkpoint is None else Path(plan.checkpoint)
        self.model = starting_model(
            path, plan.architecture, self.subset.class_names, plan.quantization
        )

    def _setup_train(self) -> None:
        """Set up as Ultralytics does, but average with qatval's own horizon."""
        with own_setup():
            super()._setup_train()
        # Walking the modules of a quantized model takes as long as clipping its gradients.
        self._parameters = list(self.model.parameters())
        self._updates = -(-len(self.train_loader) // self.accumulate) * self.epochs
        decay, tau = self.plan.averaging.for_steps(self._updates)
        model: Any = unwrapped(self.model)
        self.ema = WeightAverage(model, decay, tau, scale_parameters(model))
        if self.plan.quantization is not None:
            self._watch_weights(model)
        if (teacher := self.plan.teacher) is not None:
            # Not before the average is made: a copy of the model would get a teacher of its own.
            model.criterion = DistilledCriterion(
                model, self._reference(), weight=teacher.weight, task=teacher.task
            )
        if self.plan.batchnorm == "anchored":
            with same_randomness():
                images = CalibrationImages(
                    self.subset,
                    calibration_images(),
                    vars(self.args),
                    seed=self.args.seed,
                    device=self.device,
                )
                self._anchor = Anchor(self._reference(), images.pixels)
        self._evaluator = Evaluator(
            self.test_loader,
            self.subset,
            args=self.args,
            device=self.device,
            save_dir=self.save_dir,
        )

    def _reference(self) -> Any:
        """Load the FP32 checkpoint."""
        plan = self.plan
        assert plan.reference is not None
        path = Path(plan.reference)
        return load_pretrained(path, plan.architecture, self.subset.class_names).to(self.device)

    def _watch_weights(self, model: nn.Module) -> None:
        """Set up what needs the quantized layers: fused quantization, stabilizers, tracking."""
        weights = LatentWeights(model)
        self.stabilizers = [part.make(weights) for part in self.plan.stabilizers]
        for stabilizer in self.stabilizers:
            stabilizer.state()  # refuses what it cannot save, now and not after hours
        self._forward_codes: Callable[[], torch.Tensor] = weights.flat_codes
        if self.plan.fused:
            fused = fuse_quantization(model, capture=self.plan.track)
            self._forward_codes = lambda: fused.codes
        if self.plan.track:
            self.tracker = OscillationTracker(weights)

    def _model_train(self) -> None:
        """Set training mode, but for the BatchNorm of a model whose teacher says so."""
        super()._model_train()
        if self.plan.teacher is not None and self.plan.teacher.hold_statistics:
            for _, layer in tracking(unwrapped(self.model)):
                layer.eval()

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Build Ultralytics' optimizer with the learned scales free of weight decay.

        Decay pulls a scale towards zero, which is a change of the grid and not a regularisation.
        AdamW takes its step in one pass over each weight, as Ultralytics has it on a GPU only.
        """
        optimizer = super().build_optimizer(model, *args, **kwargs)
        scales = scale_parameters(model)
        groups = {group["param_group"]: group for group in optimizer.param_groups}
        decayed = groups["weight"]
        groups["bn"]["params"] += [p for p in decayed["params"] if p in scales]
        decayed["params"] = [p for p in decayed["params"] if p not in scales]
        if isinstance(optimizer, torch.optim.AdamW):
            fused = [{**group, "fused": True} for group in optimizer.param_groups]
            # The constructor is what tells a gradient scaler that the optimizer is fused.
            return torch.optim.AdamW(fused, fused=True)
        return optimizer

    def optimizer_step(self) -> None:
        """Clip, step and average as Ultralytics does, with the stabilizers before and after."""
        self.scaler.unscale_(self.optimizer)
        if self.tracker is not None:
            self.tracker.observe(self._forward_codes())
        images = self.batch_size * self.accumulate
        for stabilizer in self.stabilizers:
            stabilizer.before_step(self.ema.updates / self._updates, images)
        torch.nn.utils.clip_grad_norm_(self._parameters, max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        for stabilizer in self.stabilizers:
            stabilizer.after_step(min((self.ema.updates + 1) / self._updates, 1.0))
        self.ema.update(self.model)

    # -- what is scored and kept ------------------------------------------------------------

    def values(self) -> dict[Weights, float]:
        """Return the primary metric of all scored weights after the latest epoch."""
        return {which: evaluation.value for which, evaluation in self._evaluations.items()}

    def _model_of(self, which: Weights) -> nn.Module:
        return unwrapped(self.model) if which == "raw" else self.ema.ema

    def validate(self) -> tuple[dict[str, float], float]:
        """Score the weights, averaged or not; Ultralytics sees the first metrics."""
        if self._anchor is not None:
            # Both, so that a training is the same whichever are scored: where BatchNorm holds
            # its statistics in training they take part in it.
            for model in map(self._model_of, get_args(Weights)):
                with same_randomness(), quantized_once(model):
                    self._anchor.settle(model)
        if self.world_size > 1:
            # BatchNorm statistics differ between ranks; all score with those of rank 0.
            for which in self.plan.scored:
                for buffer in self._model_of(which).buffers():
                    dist.broadcast(buffer, src=0)
        models = [self._model_of(which) for which in self.plan.scored]
        evaluations = self._evaluator.evaluate_together(models, with_losses=True)
        self._evaluations = dict(zip(self.plan.scored, evaluations, strict=True))
        first = self._evaluations[self.plan.scored[0]]
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters):
            self.stopped = f"weights are not finite after epoch {self.epoch + 1}"
            self.stop = True
        return dict(first.metrics), first.value

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Record the epoch of all scored weights, and how the weights oscillated in it."""
        epoch, seconds = self.epoch + 1, time.time() - self.train_time_start
        if self.tracker is not None:
            epochs = [asdict(self.tracker.end_epoch(epoch))]
            self.log.append("oscillation.csv", epochs)
            layers = [{"epoch": epoch, **asdict(x)} for x in self.tracker.result().layers]
            self.log.append("oscillation_layers.csv", layers)
        losses, rates = (
            {name: float(value) for name, value in metrics.items() if name.startswith(group)}
            for group in ("train/", "lr/")
        )
        for which, evaluation in self._evaluations.items():
            val = {f"val/{name}": loss for name, loss in evaluation.losses.items()}
            self.log.add(which, epoch, seconds, losses | evaluation.metrics | val | rates)

    def save_model(self) -> bool:
        """Keep the best latent weights of those that are scored, and how far the training is.

        What fell below the collapse line is kept for an autopsy.
        """
        for which in self._evaluations:
            if self.log.falls(which, self.plan.start_value, self.plan.fp32_value):
                self.kept.keep_fallen(which, self.epoch + 1)
        for which, evaluation in self._evaluations.items():
            if evaluation.value > self.best_values.get(which, -1.0):
                self.best_values[which] = evaluation.value
                self.kept.keep_best(which)
        self._write_trajectory(complete=False)
        return True

    def finish(self, *, complete: bool) -> None:
        """Leave the latest latent weights, as they are and averaged.

        What interrupts a training matters more than what can be left of it: then nothing is raised.
        """
        if RANK > 0:
            return
        with contextlib.nullcontext() if complete else contextlib.suppress(Exception):
            self.kept.keep_last()
            self._write_trajectory(complete=complete)
            self.log.close()

    def _write_trajectory(self, *, complete: bool) -> None:
        trajectory = Trajectory(
            history=self.log.history,
            steps=self.ema.updates,
            decay=self.ema.decay,
            tau=self.ema.tau,
            effective_decay=self.ema.effective_decay,
            amp=bool(self.amp) and self.device.type == "cuda",
            peak_memory_mb=self.peak_memory_mb(),
            stopped=self.stopped,
            stabilizers=[stabilizer.report() for stabilizer in self.stabilizers],
            oscillation=self.tracker.result() if self.tracker else None,
            directory=str(self.save_dir),
            complete=complete,
        )
        write(self._work, trajectory)

    def peak_memory_mb(self) -> int | None:
        """Return the most memory of all processes of the training, see `Trajectory`."""
        now = (
            torch.cuda.max_memory_reserved(self.device) // 2**20
            if self.device.type == "cuda"
            else peak_resident_mb()
        )
        return max((n for n in (now, self.memory_before) if n is not None), default=None)

    def interrupted(self) -> bool:
        """Return whether the work directory has a state."""
        return state.steps_done(self._work) is not None

    def save_state(self) -> None:
        """Write the state into the work directory."""
        state.save(self._work, self)

    def load_state(self) -> bool:
        """Take up the state in the work directory, if there is one."""
        return state.load(self._work, self)
