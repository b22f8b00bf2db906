"""The life of a run: settle what to run, claim its roots, do the work, leave a summary.

The work itself is in `qatval.engine`, which takes seconds to import; a run root says
``incomplete`` before that.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import gc
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qatval import config as presets
from qatval.config import BatchNorm, Quantization, RunConfig
from qatval.errors import QatvalError
from qatval.methods import method
from qatval.progress import Progress
from qatval.record import Summary
from qatval.runroot import RunRoot
from qatval.summary import announced


def configure(
    *,
    variant: str,
    methods: Sequence[str],
    profile: str,
    run_root: Path,
    coco_root: Path,
    seed: int = 0,
    checkpoint: Path | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    imgsz: int | None = None,
    batchnorm: BatchNorm | None = None,
    quantization: str = "w4a16",
    precision: Mapping[str, Any] | None = None,
    **options: Any,
) -> RunConfig:
    """Settle a run from names: the dataset decides which presets and which checkpoint apply.

    Args:
        variant, methods, profile: Names of presets.
        run_root: The run's folder.
        coco_root: The dataset; the embedded one is recognised by its manifest.
        seed: Seed of the run.
        checkpoint, epochs, batch, imgsz, batchnorm: Replace what the presets say, None to keep it.
        quantization: Name of a preset.
        precision: Fields of `Quantization` that replace what the preset says; of ``start`` a
            mapping of those of `Start`.
        options: Further fields of `RunConfig`.

    Raises:
        UsageError: If there is no preset of a name, or a value is out of range.
        QatvalError: If the dataset is not there.
    """
    from qatval.data.subset import presets_of

    dataset = presets_of(coco_root)
    chosen = presets.variant(variant)
    preset = presets.profile(dataset, profile)
    return RunConfig(
        variant=chosen,
        methods=tuple(method(name) for name in methods),
        profile=dataclasses.replace(
            preset,
            epochs=epochs or preset.epochs,
            batch=batch or preset.batch,
            imgsz=imgsz or preset.imgsz,
            batchnorm=batchnorm or preset.batchnorm,
        ),
        quantization=_quantization(quantization, precision or {}),
        seed=seed,
        run_root=run_root,
        coco_root=coco_root,
        checkpoint=checkpoint or chosen.checkpoint_for(dataset),
        **options,
    )


def _quantization(name: str, replaced: Mapping[str, Any]) -> Quantization:
    preset = presets.quantization(name)
    start = dataclasses.replace(preset.start, **replaced.get("start", {}))
    return dataclasses.replace(preset, **{**replaced, "start": start})


def run(config: RunConfig, progress: Progress) -> list[Summary]:
    """Run every training that the methods take and score each method.

    Args:
        config: What to run.
        progress: Where to show how far it is.

    Returns:
        The methods' summaries in the order asked for, as written to their run roots.

    Raises:
        QatvalError: For whatever the user can change. The run roots, if they could be claimed,
            hold an ``incomplete`` summary that says the same.
        BaseException: Anything else that ended the run, recorded in the same way.
    """
    roots: dict[str, RunRoot] = {}
    work: Path | None = None
    try:
        for chosen in config.methods:
            roots[chosen.name] = RunRoot(
                config.root_of(chosen.name),
                announced(config, chosen),
                overwrite=config.overwrite,
            )
        _pass_gate(config)
        work = Path(tempfile.mkdtemp(prefix=".training-", dir=config.run_root))
        _engine()(config, roots, work, progress)
    except BaseException as error:
        explained = _explained(error, config)
        for root in roots.values():
            if root.summary["status"] == "incomplete":
                root.fail(explained)
        if explained is not error:
            raise explained from error
        raise
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return [roots[chosen.name].summary for chosen in config.methods]


@functools.cache
def _engine() -> Callable[[RunConfig, Mapping[str, RunRoot], Path, Progress], None]:
    """Import the engine and leave what its libraries are made of out of garbage collections.

    All of it lives as long as the process. Walking it whenever enough new objects are around took
    0.4 s of the six before a run's first step.
    """
    from qatval.engine import execute

    gc.freeze()
    atexit.register(gc.unfreeze)  # or Triton reports its own as leaked
    return execute


def _explained(error: BaseException, config: RunConfig) -> BaseException:
    """Return what to tell the user of an error: what to do, where there is something to do."""
    exhausted = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    if not exhausted or isinstance(error, QatvalError):
        return error
    return QatvalError(f"out of memory: try --batch {max(config.profile.batch // 2, 1)}")


def _pass_gate(config: RunConfig) -> None:
    """Refuse a gated variant while the gate is closed."""
    if not config.variant.gated:
        return
    name = config.variant.name
    if config.gate_root is None:
        raise QatvalError(
            f"{name} is behind the stage gate: give the runs that open it with --gate-root"
        )
    from qatval.gate import decide
    from qatval.runs import collect

    runs, _ = collect([config.gate_root])
    decision = decide(runs)
    if not decision.open:
        reasons = "; ".join(str(unmet) for unmet in decision.unmet)
        raise QatvalError(f"the stage gate for {name} is closed: {reasons}")
