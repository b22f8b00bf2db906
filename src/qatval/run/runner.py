"""The life of a run: settle what to run, claim its folders, do the work, leave a summary.

The work itself is in `qatval.run.pipeline`, which takes seconds to import; a run root says
``incomplete`` before that.
"""

from __future__ import annotations

import atexit
import functools
import gc
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from qatval.core.errors import QatvalError, from_system
from qatval.core.progress import Progress
from qatval.core.summary import RunSummary
from qatval.data.checkpoints import hold_to_pin
from qatval.run.configuration import RunConfig
from qatval.run.folder import RunFolder
from qatval.run.record import announced, run_name


def run(config: RunConfig, progress: Progress) -> list[RunSummary]:
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
    folders: dict[str, RunFolder] = {}
    try:
        for chosen in config.methods:
            folders[chosen.name] = RunFolder(
                config.root_of(chosen.name),
                run_name(config, chosen),
                announced(config, chosen),
                overwrite=config.overwrite,
            )
        _pass_gate(config)
        _find_checkpoint(config)
        # Removed before a failure is recorded: where it has filled the disk, that makes room.
        with tempfile.TemporaryDirectory(
            prefix=".training-", dir=config.run_root, ignore_cleanup_errors=True
        ) as work:
            _pipeline()(config, folders, Path(work), progress)
    except BaseException as error:
        explained = _explained(error, config)
        for folder in folders.values():
            if folder.summary.status == "incomplete":
                folder.fail(explained)
        if explained is not error:
            raise explained from error
        raise
    return [folders[chosen.name].summary for chosen in config.methods]


@functools.cache
def _pipeline() -> Callable[[RunConfig, Mapping[str, RunFolder], Path, Progress], None]:
    """Import the pipeline and leave what its libraries are made of out of garbage collections.

    All of it lives as long as the process. Walking it whenever enough new objects are around took
    0.4 s of the six before a run's first step.
    """
    from qatval.run.pipeline import execute

    gc.freeze()
    atexit.register(gc.unfreeze)  # or Triton reports its own as leaked
    return execute


def _explained(error: BaseException, config: RunConfig) -> BaseException:
    """Return what to tell the user of an error: what to do, where there is something to do."""
    if isinstance(error, QatvalError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return QatvalError(f"out of memory: try --batch {max(config.profile.batch // 2, 1)}")
    return from_system(error) or error


def _find_checkpoint(config: RunConfig) -> None:
    """Refuse a checkpoint that is not there, before the subset is built, with the right remedy."""
    path, variant = config.checkpoint, config.variant
    hold_to_pin(path)
    if path.is_file() or not config.coco_root.is_dir():  # a missing dataset is said first
        return
    remedy = "name a .pt or .safetensors file with --checkpoint"
    if path == variant.embedded_checkpoint:
        remedy = (
            "it comes with qatval's repository: run qatval from a clone, restore the file, or give "
            "one with --checkpoint"
        )
    elif path == variant.checkpoint:
        remedy = (
            f"download the official file with 'qatval checkpoints fetch {variant.name}', or give "
            "one with --checkpoint"
        )
    raise QatvalError(f"checkpoint {path} not found: {remedy}")


def _pass_gate(config: RunConfig) -> None:
    """Refuse a variant behind the gate while that is closed."""
    if not config.variant.requires:
        return
    name = config.variant.name
    if config.gate_root is None:
        raise QatvalError(
            f"{name} is behind the stage gate: give the runs that open it with --gate-root"
        )
    from qatval.analysis.gate import decide
    from qatval.analysis.runs import collect

    runs, _ = collect([config.gate_root], verify=True)
    decision = decide(runs, config.variant.requires)
    if not decision.yolo10m_allowed:
        raise QatvalError(f"the stage gate for {name} is closed: {'; '.join(decision.reasons)}")
