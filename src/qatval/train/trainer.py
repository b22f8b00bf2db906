"""The training itself: the one module that knows Ultralytics' trainer.

One training yields one *trajectory* of raw weights. Two kinds of weights are scored along it:
``raw``, the weights themselves, and ``ema``, their moving average. Averaging takes no part in the
gradient steps, so both belong to the same trajectory and their differences are paired. What
does take part, a `Stabilizer`, makes a trajectory of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from msgspec.structs import asdict
from torch import distributed as dist
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG

from qatval.core.detectors import detector_of
from qatval.core.environment import peak_resident_mb
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write
from qatval.core.measurements import EpochRecord
from qatval.core.stability import PRIMARY_METRIC
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
from qatval.train.calibration import CalibrationImages
from qatval.train.dataset import SubsetDataset
from qatval.train.distillation import DistilledCriterion
from qatval.train.evaluation import Evaluation, Evaluator, same_randomness
from qatval.train.models import CheckpointInfo, load_pretrained, save_checkpoint, starting_model
from qatval.train.patches import own_setup
from qatval.train.trajectory import (
    TrainingPlan,
    Trajectory,
    append_csv,
    read_plan,
    read_trajectory,
    write,
)

# What Ultralytics does by itself and qatval does elsewhere, or not at all.
_FIXED_ARGUMENTS: Mapping[str, Any] = {
    "task": "detect",
    "mode": "train",
    "rect": False,
    "val": True,
    "plots": False,
    "save": True,
    "patience": 0,  # never stop early
    "deterministic": True,
    "exist_ok": True,
    "verbose": False,
}


def train(
    directory: Path,
    plan: TrainingPlan,
    arguments: Mapping[str, Any],
    callbacks: Mapping[str, Callable[[QatTrainer], None]],
) -> Trajectory:
    """Run a training and return what it left in ``directory``.

    Args:
        directory: Work directory, made if it does not exist.
        plan: What to train.
        arguments: Ultralytics' training arguments (epochs, batch, imgsz, seed, device, ...).
        callbacks: Ultralytics event -> function, called in this process only.

    Raises:
        QatvalError: If the device runs out of memory, naming a batch size to try.
    """
    directory = directory.resolve()
    write(directory, plan)
    trainer = QatTrainer(
        overrides={
            **arguments,
            **_FIXED_ARGUMENTS,
            "nms": None if detector_of(plan.architecture).nms_iou else False,
            "model": plan.architecture,
            "data": "qatval",
            "project": str(directory),
            "name": "training",
        }
    )
    if not trainer.ddp:
        for event, function in callbacks.items():
            trainer.add_callback(event, function)
    trainer.train()
    return read_trajectory(directory)


def steps_done(directory: Path) -> int | None:
    """Return how many steps an unfinished training in ``directory`` has behind it, None without."""
    return read_trajectory(directory).steps if (directory / "trajectory.json").exists() else None


class QatTrainer(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' trainer with fake-quantized weights, scored as they are and averaged."""

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
    ) -> None:
        """Read the plan beside the save directory, then start as Ultralytics does."""
        assert overrides is not None
        self._work = Path(overrides["project"])
        self.plan = read_plan(self._work)
        self.subset = open_subset(Path(self.plan.subset))
        self._history: dict[Weights, list[EpochRecord]] = {which: [] for which in self.plan.scored}
        self._writers: dict[Weights, Any] = {}
        self._best: dict[Weights, float] = {}
        self._evaluations: dict[Weights, Evaluation] = {}
        self._stabilizers: list[Stabilizer] = []
        self._tracker: OscillationTracker | None = None
        self._anchor: Anchor | None = None
        self.stopped: str | None = None
        super().__init__(cfg, overrides, _callbacks)
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
        self._stabilizers = [part.make(weights) for part in self.plan.stabilizers]
        self._forward_codes: Callable[[], torch.Tensor] = weights.flat_codes
        if self.plan.fused:
            fused = fuse_quantization(model, capture=self.plan.track)
            self._forward_codes = lambda: fused.codes
        if self.plan.track:
            self._tracker = OscillationTracker(weights)

    def _model_train(self) -> None:
        """Set training mode, but for the BatchNorm of a model whose teacher says so."""
        super()._model_train()
        if self.plan.teacher is not None and self.plan.teacher.hold_statistics:
            for _, layer in tracking(unwrapped(self.model)):
                layer.eval()

    def _build_train_pipeline(self) -> None:
        """Build the loaders once; Ultralytics builds them again with half the batch if memory ends.

        A run that trains with another batch than it was asked for is another experiment.
        """
        if getattr(self, "_oom_retries", 0):
            raise QatvalError(
                f"{self.device} is out of memory at the batch size asked for: "
                f"try --batch {self.batch_size}"
            )
        super()._build_train_pipeline()

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
        if self._tracker is not None:
            self._tracker.observe(self._forward_codes())
        images = self.batch_size * self.accumulate
        for stabilizer in self._stabilizers:
            stabilizer.before_step(self.ema.updates / self._updates, images)
        torch.nn.utils.clip_grad_norm_(self._parameters, max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        for stabilizer in self._stabilizers:
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
        """Append a line to the ``results.csv`` and TensorBoard log of all scored weights."""
        from torch.utils.tensorboard.writer import SummaryWriter

        epoch, seconds = self.epoch + 1, time.time() - self.train_time_start
        if self._tracker is not None:
            epochs = [asdict(self._tracker.end_epoch(epoch))]
            append_csv(self.save_dir / "oscillation.csv", epochs)
            layers = [{"epoch": epoch, **asdict(x)} for x in self._tracker.result().layers]
            append_csv(self.save_dir / "oscillation_layers.csv", layers)
        losses, rates = (
            {name: float(value) for name, value in metrics.items() if name.startswith(group)}
            for group in ("train/", "lr/")
        )
        for which, evaluation in self._evaluations.items():
            val = {f"val/{name}": loss for name, loss in evaluation.losses.items()}
            row = losses | evaluation.metrics | val | rates
            line = {"epoch": epoch, "time": seconds, **row}
            append_csv(self.save_dir / which / "results.csv", [line])
            if which not in self._writers:
                self._writers[which] = SummaryWriter(str(self.save_dir / which / "tensorboard"))
            writer = self._writers[which]
            for name, value in row.items():
                writer.add_scalar(name, value, epoch)
            writer.flush()
            finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
            record = EpochRecord(epoch, finite[PRIMARY_METRIC], finite, round(seconds, 3))
            self._history[which].append(record)

    def save_model(self) -> bool:
        """Keep the latest latent weights, as they are and averaged, and the best of scored ones."""
        quantization = self.plan.quantization
        info = CheckpointInfo(
            kind="float" if quantization is None else "latent",
            architecture=self.plan.architecture,
            class_names=self.subset.class_names,
            quantization=quantization,
        )
        for which in get_args(Weights):
            folder = self.save_dir / which / "weights"
            last = folder / "last.safetensors"
            save_checkpoint(last, self._model_of(which), info)
            evaluation = self._evaluations.get(which)
            if evaluation is not None and evaluation.value > self._best.get(which, -1.0):
                self._best[which] = evaluation.value
                atomic_write(folder / "best.safetensors", last.read_bytes())
        on_gpu = self.device.type == "cuda"
        trajectory = Trajectory(
            history=self._history,
            steps=self.ema.updates,
            decay=self.ema.decay,
            tau=self.ema.tau,
            effective_decay=self.ema.effective_decay,
            amp=bool(self.amp) and on_gpu,
            peak_memory_mb=torch.cuda.max_memory_reserved(self.device) // 2**20
            if on_gpu
            else peak_resident_mb(),
            stopped=self.stopped,
            stabilizers=[stabilizer.report() for stabilizer in self._stabilizers],
            oscillation=self._tracker.result() if self._tracker else None,
            directory=str(self.save_dir),
        )
        write(self._work, trajectory)
        return True

    # -- what Ultralytics would do with its own checkpoints ---------------------------------

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Never go back to an earlier checkpoint: a divergence is a result."""
        return False

    def final_eval(self) -> None:
        """Leave the final evaluation to the runner, which scores what it will deliver."""
        for writer in self._writers.values():
            writer.close()
