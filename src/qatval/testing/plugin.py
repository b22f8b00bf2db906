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

import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qatval.analysis import thresholds
from qatval.analysis.runs import LoadedRun, collect
from qatval.core import presets
from qatval.core.environment import available_cores, prepare_process
from qatval.core.errors import QatvalError
from qatval.core.locks import exclusive
from qatval.testing.continuity import KeptSession
from qatval.testing.launching import ScenarioStudy
from qatval.testing.options import add_options, refuse_unfit
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
from qatval.testing.settings import Settings
from qatval.testing.training import trained

_DATASETS = {"embedded_scenario": (EMBEDDED,), "coco_scenario": (COCO, PHOTOGRAPHS)}
_SETTINGS = pytest.StashKey[Settings]()
_SELECTED = pytest.StashKey[list[Scenario]]()
_STUDY = pytest.StashKey[ScenarioStudy]()
_STOPPED = pytest.StashKey[str | None]()
_KEPT = pytest.StashKey[KeptSession]()
_INTERRUPTED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the validation."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, refuse options that do not go together, share the cores."""
    for marker, meaning in {
        "gpu": "needs a GPU, real COCO and the official checkpoint",
        "cpu": "runs on the CPU, with the embedded dataset or a folder of photographs",
        **{name: f"runs under the profile {name}" for name in presets.profile_names()},
    }.items():
        config.addinivalue_line("markers", f"{marker}: {meaning}")
    refuse_unfit(config.option)
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
    """Stop what the session has placed, and note whether it came to its end."""
    stash = session.config.stash
    ended = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
    left = stash[_STUDY].stop() if _STUDY in stash else None
    stash[_STOPPED] = left
    stash[_INTERRUPTED] = exitstatus in ended or left is not None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let go of the folder of a session whose runs are kept."""
    if kept := config.stash.get(_KEPT, None):
        kept.end(interrupted=config.stash.get(_INTERRUPTED, True))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the settings in force."""
    option = config.option
    seeds = ",".join(map(str, option.seeds))
    header = [f"qatval: profile={option.profile}, seeds={seeds}, coco-root={option.coco_root}"]
    if option.launcher is not None:
        folder = _settings(config).session_dir
        header.append(
            f"qatval: launcher={option.launcher}; 'qatval study status {folder}' shows it"
        )
    return header


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
    """Note which scenarios the session has selected, and plan their study if they get one."""
    config = session.config
    found = [
        value
        for item in session.items
        if (callspec := getattr(item, "callspec", None))
        for value in callspec.params.values()
        if isinstance(value, Scenario)
    ]
    selected = config.stash[_SELECTED] = list(dict.fromkeys(found))
    settings = _settings(config)
    if settings.launcher is None or config.option.collectonly:
        return
    data = {s: _data(s, settings) for s in selected if not _missing(s, settings)}
    if not data:
        return
    try:
        config.stash[_STUDY] = ScenarioStudy(data, settings.launcher, settings)
    except QatvalError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def qatval_settings(pytestconfig: pytest.Config) -> Settings:
    """Everything the command line says about the validation, in one frozen object."""
    return _settings(pytestconfig)


@pytest.fixture(scope="session")
def embedded_dataset(qatval_settings: Settings) -> Path:
    """Return the root of the embedded dataset, drawn once for all workers."""
    from qatval.data.shapes import draw_dataset

    folder = qatval_settings.session_dir
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / f".{EMBEDDED}.lock"):  # as `Job.draw` has it
        draw_dataset(folder / EMBEDDED)
    return folder / EMBEDDED


@pytest.fixture
def validation_run(
    request: pytest.FixtureRequest, qatval_settings: Settings
) -> Callable[[Scenario], LoadedRun]:
    """Return a function that gives a scenario's run, after its training if nobody has begun that.

    The function skips the test where a GPU, the dataset or the checkpoint is missing (or fails
    it, with ``--strict-resources``), and fails it where the run is incomplete.
    """
    stash = request.config.stash

    def root_of(scenario: Scenario) -> Path:
        if _STUDY in stash:
            return stash[_STUDY].run_root(scenario)
        data = _data(scenario, qatval_settings)
        if scenario.dataset == EMBEDDED:
            data["coco_root"] = request.getfixturevalue("embedded_dataset")
        together = [s.method for s in stash[_SELECTED] if s.training == scenario.training]
        return trained(scenario, together, data, qatval_settings)

    def give(scenario: Scenario) -> LoadedRun:
        _require(request.node, scenario, qatval_settings)
        try:
            root = root_of(scenario)
        except QatvalError as error:
            pytest.fail(f"{scenario}: {error}", pytrace=False)
        (run,), _ = collect([root])
        request.node.user_properties.extend(run_properties(run))
        if not run.completed:
            assert run.summary.error is not None
            pytest.fail(f"{scenario} is incomplete: {run.summary.error.message}", pytrace=False)
        return run

    return give


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


def _missing(scenario: Scenario, settings: Settings) -> list[str]:
    """Say what a scenario lacks, each with the remedy."""
    if scenario.dataset == EMBEDDED:
        return []
    if scenario.dataset == PHOTOGRAPHS:
        return settings.real_data.missing(scenario.variant)
    here = settings.launcher in (None, "local")  # a cluster's GPUs are in other machines
    gpu = here and settings.device != "cpu"
    return missing_resources(scenario, settings.coco_root, settings.gate_root, gpu=gpu)


def _data(scenario: Scenario, settings: Settings) -> dict[str, Any]:
    """Return what `configure` is told of a scenario's data; of the embedded ones nothing."""
    if scenario.dataset == EMBEDDED:
        return {}
    if scenario.dataset == COCO:
        return {"coco_root": settings.coco_root}
    real_data = settings.real_data
    return {
        "coco_root": real_data.coco_root,
        "imgsz": PHOTOGRAPHS_IMGSZ,
        "checkpoint": real_data.checkpoint(scenario.variant),
    }


def _require(item: pytest.Item, scenario: Scenario, settings: Settings) -> None:
    """Skip a test whose scenario lacks something, or fail it."""
    if missing := _missing(scenario, settings):
        reason = "; ".join(missing)
        item.user_properties.append((UNAVAILABLE, reason))
        if settings.strict_resources:
            pytest.fail(f"{scenario} cannot run: {reason}", pytrace=False)
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the session's runs, write their comparison, count what could not run."""
    settings = _settings(config)
    if stopped := config.stash.get(_STOPPED, None):
        terminalreporter.write_line(f"qatval: {stopped}")
    show_session(
        terminalreporter, settings.session_dir, update_thresholds=settings.update_thresholds
    )
