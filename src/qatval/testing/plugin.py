"""The pytest side: scenarios as parameters, one training per group of them, a table at the end.

A scenario is one (dataset, variant, method, profile, seed). A test asks for it through the
fixture ``embedded_scenario`` or ``coco_scenario`` and for its run through ``validation_run``.
Scenarios that differ only in the method share one training: whichever test comes first runs it
under a file lock with every method that the session has selected, the others, also in other
xdist workers, wait and read their own run root.

A project asks for it in the ``conftest.py`` of its root: ``pytest_plugins =
["qatval.testing.plugin"]``. Nothing here imports torch, so collecting is quick.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import filelock
import pytest

from qatval.analysis import thresholds
from qatval.analysis.runs import LoadedRun, collect
from qatval.core import presets
from qatval.core.environment import available_cores, prepare_process
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write
from qatval.run.folder import is_finished
from qatval.testing.continuity import KeptSession
from qatval.testing.options import add_options
from qatval.testing.scenarios import (
    COCO,
    EMBEDDED,
    PHOTOGRAPHS,
    PHOTOGRAPHS_IMGSZ,
    REAL_DATA_VARIABLE,
    RealData,
    Scenario,
    missing_resources,
    scenarios,
)
from qatval.testing.session import NOT_JUDGED, UNAVAILABLE, run_properties, show_session


@dataclass(frozen=True)
class Settings:
    """What holds for the validation in every worker: the options of the same names, and more.

    Attributes:
        real_data: Photographs and a checkpoint for the CPU.
        session_dir: Holds the session's runs, their locks and the comparison.
        session: Tells this session from others that used the same folder.
    """

    profile: str
    seeds: tuple[int, ...]
    coco_root: Path
    device: str | None
    runs_per_gpu: int
    gate_root: Path | None
    strict_resources: bool
    with_controls: bool
    update_thresholds: bool
    real_data: RealData
    session_dir: Path
    session: str


_DATASETS = {"embedded_scenario": (EMBEDDED,), "coco_scenario": (COCO, PHOTOGRAPHS)}
_SETTINGS = pytest.StashKey[Settings]()
_SELECTED = pytest.StashKey[dict[str, tuple[str, ...]]]()
_KEPT = pytest.StashKey[KeptSession]()
_INTERRUPTED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the validation."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, settle the session's folder and share the cores among workers."""
    for marker, meaning in {
        "gpu": "needs a GPU, real COCO and the official checkpoint",
        "cpu": "runs on the CPU, with the embedded dataset or a folder of photographs",
        **{name: f"runs under the profile {name}" for name in presets.profile_names()},
    }.items():
        config.addinivalue_line("markers", f"{marker}: {meaning}")
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_SharedWithWorkers())
    prepare_process()
    if _is_worker(config):
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // workers)))


class _SharedWithWorkers:
    """Hooks that exist only with xdist."""

    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which folder the session uses."""
        settings = _settings(node.config)
        node.workerinput["qatval_session_dir"] = str(settings.session_dir)
        node.workerinput["qatval_session"] = settings.session


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _settings(config: pytest.Config) -> Settings:
    if _SETTINGS not in config.stash:
        names = [field.name for field in fields(Settings)]
        asked = {name: value for name, value in vars(config.option).items() if name in names}
        beside = config.rootpath.parent / "shared" / "real"  # of a checkout
        real_data = RealData(Path(os.environ.get(REAL_DATA_VARIABLE) or beside))
        config.stash[_SETTINGS] = Settings(
            **asked,
            real_data=real_data,
            session_dir=_session_dir(config),
            session=_session(config),
        )
    return config.stash[_SETTINGS]


def _session_dir(config: pytest.Config) -> Path:
    if _is_worker(config):
        return Path(config.workerinput["qatval_session_dir"])  # type: ignore[attr-defined]
    if config.option.run_root is not None:
        arguments = tuple(map(str, config.invocation_params.args))
        kept = KeptSession(Path(config.option.run_root).absolute(), arguments)
        config.stash[_KEPT] = kept
        return kept.directory
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    # Under -p no:tmpdir nobody else makes a folder, or removes one.
    base = factory.getbasetemp() if factory else Path(tempfile.mkdtemp(prefix="pytest-qatval-"))
    return base / "qatval"


def _session(config: pytest.Config) -> str:
    if _is_worker(config):
        return str(config.workerinput["qatval_session"])  # type: ignore[attr-defined]
    return secrets.token_hex(8)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Leave what a session whose runs are kept needs to go on, should it be killed."""
    settled = _settings(session.config)
    if (kept := session.config.stash.get(_KEPT, None)) and not session.config.option.collectonly:
        kept.begin()
        assert settled.session_dir == kept.directory


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Note whether the session came to its end."""
    ended = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
    session.config.stash[_INTERRUPTED] = exitstatus in ended


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let go of the folder of a session whose runs are kept."""
    if kept := config.stash.get(_KEPT, None):
        kept.end(interrupted=config.stash.get(_INTERRUPTED, True))


def pytest_report_header(config: pytest.Config) -> str:
    """Show the settings in force."""
    option = config.option
    seeds = ",".join(map(str, option.seeds))
    return f"qatval: profile={option.profile}, seeds={seeds}, coco-root={option.coco_root}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that ask for a scenario."""
    option = metafunc.config.option
    # With --dist loadgroup one worker gets all scenarios of a training.
    grouped = metafunc.config.pluginmanager.hasplugin("xdist")

    def parameter(scenario: Scenario) -> Any:
        names = "gpu" if scenario.dataset == COCO else "cpu", scenario.profile
        marks = [getattr(pytest.mark, name) for name in names]
        if grouped:
            marks.append(pytest.mark.xdist_group(scenario.training))
        return pytest.param(scenario, id=str(scenario), marks=marks)

    for fixture, datasets in _DATASETS.items():
        if fixture in metafunc.fixturenames:
            asked = option.profile, option.seeds, option.with_controls
            wanted = [parameter(s) for dataset in datasets for s in scenarios(dataset, *asked)]
            metafunc.parametrize(fixture, wanted)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which methods the session has selected of each training."""
    selected: dict[str, tuple[str, ...]] = {}
    for item in session.items:
        callspec = getattr(item, "callspec", None)
        for value in callspec.params.values() if callspec else ():
            if isinstance(value, Scenario):
                methods = selected.get(value.training, ())
                selected[value.training] = tuple(dict.fromkeys((*methods, value.method)))
    session.config.stash[_SELECTED] = selected


@pytest.fixture(scope="session")
def qatval_settings(pytestconfig: pytest.Config) -> Settings:
    """Everything the command line says about the validation, in one frozen object."""
    return _settings(pytestconfig)


@pytest.fixture(scope="session")
def embedded_dataset(qatval_settings: Settings) -> Path:
    """Return the root of the embedded dataset, drawn once for all workers."""
    from qatval.data.shapes import draw_dataset

    root = qatval_settings.session_dir / EMBEDDED
    root.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{root}.lock"):
        draw_dataset(root)
    return root


@pytest.fixture
def validation_run(
    request: pytest.FixtureRequest, qatval_settings: Settings
) -> Callable[[Scenario], LoadedRun]:
    """Return a function that gives a scenario's run, training it if nobody has yet.

    The function skips the test where a GPU, the dataset or the checkpoint is missing (or fails
    it, with ``--strict-resources``), and fails it where the run is incomplete.
    """
    selected = request.config.stash[_SELECTED]

    def give(scenario: Scenario) -> LoadedRun:
        settings = qatval_settings
        if scenario.dataset == EMBEDDED:
            where = {"coco_root": request.getfixturevalue("embedded_dataset")}
        else:
            where = _require(request.node, settings, scenario)
        folder = settings.session_dir / scenario.training
        folder.mkdir(parents=True, exist_ok=True)
        root = folder / scenario.method
        with filelock.FileLock(f"{folder}.lock"):
            if not is_finished(root) and _is_first_attempt(folder, settings.session):
                try:
                    _train(scenario, selected[scenario.training], folder, where, settings)
                except QatvalError as error:
                    pytest.fail(f"{scenario}: {error}", pytrace=False)
        (run,), _ = collect([root])
        request.node.user_properties.extend(run_properties(run))
        if not run.completed:
            assert run.summary.error is not None
            pytest.fail(f"{scenario} is incomplete: {run.summary.error.message}", pytrace=False)
        return run

    return give


def _is_first_attempt(folder: Path, session: str) -> bool:
    """Whether nobody has begun a training in this session, and note that somebody does now."""
    attempt = folder.with_name(f"{folder.name}.attempt")
    if attempt.exists() and attempt.read_text("utf-8") == session:
        return False
    atomic_write(attempt, session)
    return True


@pytest.fixture
def threshold_failures(
    request: pytest.FixtureRequest, qatval_settings: Settings
) -> Callable[[LoadedRun], list[str]]:
    """Return a function that checks a run against rules and references and lists what failed.

    With ``--update-thresholds`` references are about to be rewritten and do not count. A run for
    which no reference is recorded is noted in the terminal summary.
    """

    def check(run: LoadedRun) -> list[str]:
        checks = thresholds.check(run.summary, thresholds.load())
        not_judged = [(NOT_JUDGED, one.detail) for one in checks if one.result == "not judged"]
        request.node.user_properties.extend(not_judged)
        updated = thresholds.REFERENCE if qatval_settings.update_thresholds else None
        return [str(one) for one in checks if one.failed and one.name != updated]

    return check


def _require(item: pytest.Item, settings: Settings, scenario: Scenario) -> dict[str, Any]:
    """Return a scenario's data and what else `configure` is told of it, unless some are missing."""
    coco_root, real_data = settings.coco_root, settings.real_data
    where: dict[str, Any] = {"coco_root": coco_root}
    if scenario.dataset == PHOTOGRAPHS:
        missing = real_data.missing(scenario.variant)
        where = {"coco_root": real_data.coco_root, "imgsz": PHOTOGRAPHS_IMGSZ}
        where["checkpoint"] = real_data.checkpoint(scenario.variant)
    else:
        missing = missing_resources(scenario, coco_root, settings.device, settings.gate_root)
    if missing:
        reason = "; ".join(missing)
        item.user_properties.append((UNAVAILABLE, reason))
        if settings.strict_resources:
            pytest.fail(f"{scenario} cannot run: {reason}", pytrace=False)
        pytest.skip(reason)
    return where


def _train(
    scenario: Scenario,
    methods: tuple[str, ...],
    folder: Path,
    where: dict[str, Any],
    settings: Settings,
) -> None:
    """Run all selected methods of a training; whatever ends it is in their summaries."""
    from qatval.core.progress import Progress
    from qatval.run import runner
    from qatval.run.configuration import configure

    with _device(scenario, settings) as device:
        settled = configure(
            variant=scenario.variant,
            methods=methods,
            profile=scenario.profile,
            run_root=folder if len(methods) > 1 else folder / methods[0],
            **where,
            seed=scenario.seed,
            device=device,
            gate_root=settings.gate_root,
        )
        runner.run(settled, Progress(str(scenario), quiet=True))


@contextlib.contextmanager
def _device(scenario: Scenario, settings: Settings) -> Iterator[str]:
    if scenario.dataset in (EMBEDDED, PHOTOGRAPHS):
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


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the session's runs, write their comparison, count what could not run."""
    settings = _settings(config)
    show_session(
        terminalreporter, settings.session_dir, update_thresholds=settings.update_thresholds
    )
