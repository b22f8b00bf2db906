"""The life of a run: settle what to run, claim its folders, do the work, leave a summary.

The work itself is in `qatval.run.pipeline`, which takes seconds to import; a run root says
``incomplete`` before that.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import gc
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec.structs import replace

from qatval.core import interruption
from qatval.core.errors import QatvalError, from_system
from qatval.core.files import sha256_of
from qatval.core.progress import Progress
from qatval.core.summary import Resumption, RunSummary
from qatval.data.checkpoints import hold_to_pin
from qatval.deploy.export import require_installed
from qatval.quant.methods import Method
from qatval.report.run_markdown import interruption_text
from qatval.run.claim import Claim, LostError
from qatval.run.configuration import RunConfig
from qatval.run.folder import (
    RunFolder,
    complete_replacement,
    refuse_finished,
    standing,
    unfinished,
)
from qatval.run.record import announced, held, run_name
from qatval.run.workspace import Named, Workspace


def run(config: RunConfig, progress: Progress) -> list[RunSummary]:
    """Run every training that the methods take and score each method.

    What an interrupted run of the same configuration got done is kept, and the rest gone on with.

    Args:
        config: What to run.
        progress: Where to show how far it is.

    Returns:
        The methods' summaries in the order asked for, as written to their run roots.

    Raises:
        QatvalError: For whatever the user can change. The run roots, if they could be claimed,
            hold an ``incomplete`` summary that says the same; finished ones stay as they were.
        BaseException: Anything else that ended the run, recorded in the same way.
    """
    roots = {method.name: config.root_of(method.name) for method in config.methods}
    with Claim() as claim:
        with interruption.deferred():
            for folder in dict.fromkeys((config.run_root, *roots.values())):
                claim.add(folder)
            for root in roots.values():
                complete_replacement(root)
        workspace = Workspace(config.run_root, anew=config.restart)
        done = _kept(config, workspace)
        if len(done) < len(roots):
            done |= _go_on(config, claim, workspace, done, progress)
        with interruption.deferred():
            workspace.remove()
    return [done[name] for name in roots]


def _kept(config: RunConfig, workspace: Workspace) -> dict[str, RunSummary]:
    """Return the summaries of the methods that an interrupted run finished.

    Raises:
        QatvalError: If a run root holds another finished run, and is not to be overwritten.
    """
    kept = {}
    for method in config.methods:
        root, named = config.root_of(method.name), workspace.runs.get(method.name)
        if named is not None and named == _name_of(root):
            summary = standing(root)
            assert summary is not None
            kept[method.name] = summary
        elif not config.overwrite:
            refuse_finished(root)
    return kept


def _name_of(root: Path) -> Named | None:
    """Return what the finished run in a root is called, None if there is none to be read."""
    with contextlib.suppress(QatvalError):
        summary = standing(root)
        if summary is not None and summary.status != "incomplete":
            return Named(summary.run_id, summary.created_at)
    return None


def _go_on(
    config: RunConfig,
    claim: Claim,
    workspace: Workspace,
    kept: Mapping[str, RunSummary],
    progress: Progress,
) -> dict[str, RunSummary]:
    """Run what is not finished yet, begun by an interrupted run or not."""
    goes_on = bool(kept) or workspace.trained
    replaces = goes_on or config.overwrite or config.restart
    if replaces:  # what there is stays until all is in order
        check(config)
    if goes_on:
        workspace.hold(held(config))
    pending = [method for method in config.methods if method.name not in kept]
    folders: dict[str, RunFolder] = {}
    begun = goes_on
    anew = not (goes_on or config.restart) and any(
        unfinished(config.root_of(m.name)) for m in pending
    )
    try:
        for method in pending:
            folders[method.name] = RunFolder(
                config.root_of(method.name),
                run_name(config, method),
                _resumed(config, method, workspace) if goes_on else announced(config, method),
                overwrite=config.overwrite,
                claim=claim,
            )
        if not replaces:
            check(config)
        if not goes_on:
            names = {n: Named(f.summary.run_id, f.summary.created_at) for n, f in folders.items()}
            workspace.begin(len(config.trainings()), names)
            begun = True
            workspace.hold(held(config))
        for folder in folders.values():
            folder.clear()
        if anew:
            progress.milestone("begins anew: an interrupted run left nothing to go on with")
        for name in kept:
            progress.milestone(f"{name}: finished before the interruption, kept")
        for name, folder in folders.items():
            if folder.summary.resumed:
                progress.milestone(f"{name}: {interruption_text(folder.summary.resumed[-1])}")
        _pipeline()(config, folders, workspace, progress)
    except BaseException as error:
        explained = _failed(error, config, claim, workspace, folders, begun)
        if explained is not error:
            raise explained from error
        raise
    return {name: folder.summary for name, folder in folders.items()}


def _resumed(config: RunConfig, method: Method, workspace: Workspace) -> RunSummary:
    """Return the summary of a run that goes on: the same run, which was interrupted once more."""
    summary, before = announced(config, method), unfinished(config.root_of(method.name))
    named = workspace.runs[method.name]
    summary = replace(summary, run_id=named.run_id, created_at=named.created_at)
    if before is None or before.run_id != named.run_id:
        return summary
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stage = before.error.stage if before.error else None
    at = Resumption(now, stage, _steps(config, method, workspace))
    return replace(summary, resumed=(*before.resumed, at), timings=before.timings)


def _steps(config: RunConfig, method: Method, workspace: Workspace) -> int | None:
    """Return how many steps an unfinished training of a method has behind it, None without one."""
    if not workspace.trained:
        return None
    with interruption.deferred():
        from qatval.train.state import steps_done

    for number, (training, methods) in enumerate(config.trainings()):
        if method in methods and training is not None:
            with contextlib.suppress(QatvalError):  # of a damaged state, which the training tells
                return steps_done(workspace.training(number))
    return None


def _failed(
    error: BaseException,
    config: RunConfig,
    claim: Claim,
    workspace: Workspace,
    folders: Mapping[str, RunFolder],
    begun: bool,
) -> BaseException:
    """Leave what is not finished incomplete, with what it takes to go on, and return the reason."""
    left = {n: folder for n, folder in folders.items() if folder.summary.status == "incomplete"}
    with contextlib.suppress(interruption.Interrupted), interruption.deferred():
        explained = _explained(error, config, claim)
        lost = isinstance(explained, LostError)
        goes_on = begun and (workspace.trained or len(left) < len(config.methods))
        if begun and not goes_on and not lost:
            workspace.remove()  # before the reason is left: on a full disk that makes room for it
        interrupted = interruption.requested() or isinstance(error, KeyboardInterrupt)
        reasons = dict.fromkeys(left, explained)
        if interrupted and not lost:
            steps = {m.name: _steps(config, m, workspace) for m in config.methods if goes_on}
            reasons = {name: _interrupted(steps.get(name), goes_on) for name in left}
            explained = _interrupted(max(filter(None, steps.values()), default=None), goes_on)
        for name, folder in left.items():
            folder.fail(reasons[name])
            if not goes_on:
                folder.abandon()
    return explained


def _interrupted(steps: int | None, goes_on: bool) -> interruption.Interrupted:
    after = "" if steps is None else f" after {steps:,} steps of the training"
    then = "goes on from there" if goes_on else "begins anew, as nothing was trained yet"
    name = interruption.by() or "SIGINT"
    return interruption.Interrupted(f"interrupted by {name}{after}: the same command {then}")


def check(config: RunConfig, *, drawn: bool = True) -> None:
    """Refuse what can be known to be wrong before anything is loaded.

    Args:
        config: What is to be run.
        drawn: Whether the dataset has been; without it no gate can be decided.

    Raises:
        QatvalError: For a closed gate, a missing or another checkpoint, missing packages.
    """
    _pass_gate(config, drawn)
    if config.coco_root.is_dir() or not drawn:  # a missing dataset is said first
        _find_checkpoint(config)
    if config.export:
        require_installed()


@functools.cache
def _pipeline() -> Callable[[RunConfig, Mapping[str, RunFolder], Workspace, Progress], None]:
    """Import the pipeline and leave what its libraries are made of out of garbage collections.

    All of it lives as long as the process. Walking it whenever enough new objects are around took
    0.4 s of the six before a run's first step.
    """
    from qatval.run.pipeline import execute

    gc.freeze()
    atexit.register(gc.unfreeze)  # or Triton reports its own as leaked
    return execute


def _explained(error: BaseException, config: RunConfig, claim: Claim) -> BaseException:
    """Return what to tell the user of an error: what to do, where there is something to do."""
    try:
        claim.check()
    except LostError as lost:
        return lost  # whatever came of it
    if isinstance(error, QatvalError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return QatvalError(f"out of memory: try --batch {max(config.profile.batch // 2, 1)}")
    return from_system(error) or error


def _find_checkpoint(config: RunConfig) -> None:
    """Refuse a checkpoint that is not there, before the subset is built, with the right remedy."""
    path, variant = config.checkpoint, config.variant
    hold_to_pin(path)
    if path.is_file():
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


def _pass_gate(config: RunConfig, drawn: bool) -> None:
    """Refuse a variant behind the gate while that is closed."""
    if not config.variant.requires:
        return
    name = config.variant.name
    if config.gate_root is None:
        raise QatvalError(
            f"{name} is behind the stage gate: give the runs that open it with --gate-root"
        )
    if not drawn:
        return
    from qatval.analysis.gate import decide_from
    from qatval.data.coco import coco_files

    files = coco_files(config.coco_root)
    annotations = {split: sha256_of(found.annotations) for split, found in files.items()}
    decision = decide_from([config.gate_root], config.variant.requires, annotations=annotations)
    if not decision.yolo10m_allowed:
        raise QatvalError(f"the stage gate for {name} is closed: {'; '.join(decision.reasons)}")
