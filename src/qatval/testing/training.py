"""Runs in the process of the test that comes first for a training; others wait for a file lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from qatval.core.files import atomic_write
from qatval.run.folder import is_finished
from qatval.testing.scenarios import COCO, Scenario
from qatval.testing.settings import Settings


def trained(
    scenario: Scenario, methods: Sequence[str], told: dict[str, Any], settings: Settings
) -> Path:
    """Return a scenario's run root, after its training, which is begun once in a session.

    Args:
        scenario: Whose run is wanted.
        methods: That are run together: all that the session has selected of the training.
        told: What else `qatval.run.configuration.configure` is told.
        settings: Of the session.

    Raises:
        QatvalError: If the training could not be begun, or failed; its summaries say why, too.
    """
    folder = settings.session_dir / scenario.training
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / scenario.method
    with filelock.FileLock(f"{folder}.lock"):
        if not is_finished(root) and _is_first_attempt(folder, settings.session):
            _train(scenario, methods, folder, told, settings)
    return root


def _is_first_attempt(folder: Path, session: str) -> bool:
    """Whether nobody has begun a training in this session, and note that somebody does now."""
    attempt = folder.with_name(f"{folder.name}.attempt")
    if attempt.exists() and attempt.read_text("utf-8") == session:
        return False
    atomic_write(attempt, session)
    return True


def _train(
    scenario: Scenario,
    methods: Sequence[str],
    folder: Path,
    told: dict[str, Any],
    settings: Settings,
) -> None:
    from qatval.core.progress import Progress
    from qatval.run import runner
    from qatval.run.configuration import configure

    with _device(scenario, settings) as device:
        settled = configure(
            variant=scenario.variant,
            methods=methods,
            profile=scenario.profile,
            run_root=folder if len(methods) > 1 else folder / methods[0],
            **told,
            seed=scenario.seed,
            device=device,
            gate_root=settings.gate_root,
        )
        runner.run(settled, Progress(str(scenario), quiet=True))


@contextlib.contextmanager
def _device(scenario: Scenario, settings: Settings) -> Iterator[str]:
    if scenario.dataset != COCO:
        yield "cpu"
    elif settings.device is not None:
        yield settings.device
    else:
        import torch

        from qatval.testing.gpus import gpu_slot

        with gpu_slot(
            settings.session_dir / "gpus",
            gpus=torch.cuda.device_count(),
            runs_per_gpu=settings.runs_per_gpu,
        ) as device:
            # A run that needs more than its share fails by itself, and not its neighbours.
            torch.cuda.set_per_process_memory_fraction(1 / settings.runs_per_gpu, int(device))
            yield device
