"""Tasks of a real Ray cluster of two nodes: how they end, and what their processes get to save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qatval.core.errors import QatvalError
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.engines import ray as ray_engine
from qatval.run.study.engines.ray import RayEngine

_DEADLINE_S = 60
# Ends as a job does: told to, or once the process that started it is gone; takes its time to save.
_JOB = """
import os, pathlib, signal, sys, time
def save(*_):
    time.sleep(1.0)
    pathlib.Path("saved").write_text("saved\\n")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
parent = os.getppid()
print(os.getpid(), parent, flush=True)
while os.getppid() == parent:
    time.sleep(0.1)
save()
"""


@pytest.fixture(scope="module", autouse=True)
def cluster_utils() -> Any:
    pytest.importorskip("ray", reason="needs Ray: pip install 'qatval[ray]'")
    return pytest.importorskip("ray.cluster_utils")  # not before: collecting is to be quick


@pytest.fixture(scope="module")
def cluster(cluster_utils: Any) -> Iterator[Any]:
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False}
    )
    yield made
    made.shutdown()


@pytest.fixture
def connect(cluster: Any) -> Iterator[Callable[..., RayEngine]]:
    made = []

    def engine(**resources: Any) -> RayEngine:
        made.append(RayEngine(Resources(**resources), cluster.address))
        return made[-1]

    yield engine
    for one in made:
        one.stop()


@pytest.fixture
def engine(connect: Callable[..., RayEngine]) -> RayEngine:
    return connect()


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., Attempt]:
    def make(job: str, program: str, **environment: str) -> Attempt:
        command = (sys.executable, "-c", program)
        return Attempt(job, command, environment, tmp_path, tmp_path / f"{job}.txt")

    return make


def until(engine: RayEngine, *jobs: str) -> dict[str, str]:
    """Return how jobs have ended, once all of them have."""
    told: dict[str, str] = {}
    deadline = time.monotonic() + _DEADLINE_S
    while not told.keys() >= {*jobs}:
        told |= engine.ended()
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told


def appears(file: Path) -> str:
    deadline = time.monotonic() + _DEADLINE_S
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline, file
        time.sleep(0.05)
    return file.read_text().strip()


def test_how_a_process_has_ended_is_said_in_words(
    engine: RayEngine, tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    ends = {
        "done": ("print('here')", "ended"),
        "again": ("raise SystemExit(75)", "interrupted"),
        "wrong": ("raise SystemExit(1)", "ended with exit code 1"),
        "killed": (
            "import os; os.kill(os.getpid(), 9)",
            "killed by SIGKILL, as the system does where memory has run out",
        ),
    }
    missing = Attempt("missing", ("/nowhere/python",), {}, tmp_path, tmp_path / "log.txt")
    engine.place([missing, *(attempt(job, program) for job, (program, _) in ends.items())])
    assert engine.held() == {"missing", *ends}
    told = until(engine, "missing", *ends)
    assert told.pop("missing").startswith("could not be started (")
    for job, (_, words) in ends.items():
        assert told[job].startswith(words)
    assert engine.held() == set()
    assert engine.ended() == {}
    engine.place([attempt("done", "print('there')")])
    until(engine, "done")
    assert (tmp_path / "done.txt").read_text() == "here\nthere\n"  # a log goes on


def test_a_process_finds_its_environment_and_no_gpu_of_others(
    engine: RayEngine, tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    program = "import os; print(*map(os.environ.get, ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')))"
    engine.place([attempt("one", program, OMP_NUM_THREADS="3", CUDA_VISIBLE_DEVICES="")])
    until(engine, "one")
    assert (tmp_path / "one.txt").read_text() == "3 \n"


def test_no_more_run_at_a_time_than_the_cluster_has_room_for(
    engine: RayEngine, attempt: Callable[..., Attempt]
) -> None:
    program = "import os, time; os.mkdir('alone'); time.sleep(0.1); os.rmdir('alone')"
    jobs = [f"job{n}" for n in range(4)]
    engine.place([attempt(job, program) for job in jobs])
    assert {*until(engine, *jobs).values()} == {"ended"}


def test_processes_that_are_stopped_may_save_what_they_have(
    engine: RayEngine, tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    engine.place([attempt("one", _JOB), attempt("queued", "open('begun', 'w')")])
    appears(tmp_path / "one.txt")
    engine.stop()
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "begun").exists()
    assert engine.held() == set()


def test_processes_of_a_killed_worker_may_save_what_they_have(
    engine: RayEngine, tmp_path: Path, attempt: Callable[..., Attempt]
) -> None:
    engine.place([attempt("one", _JOB)])
    worker = int(appears(tmp_path / "one.txt").split()[1])
    os.kill(worker, signal.SIGKILL)
    assert until(engine, "one")["one"].startswith("lost by Ray (")
    assert appears(tmp_path / "saved") == "saved"


def test_processes_of_a_lost_node_may_save_what_they_have(
    cluster: Any,
    connect: Callable[..., RayEngine],
    tmp_path: Path,
    attempt: Callable[..., Attempt],
) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    engine = connect(threads=2)  # which the other one cannot carry
    engine.place([attempt("one", _JOB)])
    appears(tmp_path / "one.txt")
    cluster.remove_node(node, allow_graceful=False)
    assert until(engine, "one")["one"].startswith("lost by Ray (")
    assert appears(tmp_path / "saved") == "saved"


def test_processes_of_a_killed_controller_may_save_what_they_have(
    cluster: Any, tmp_path: Path
) -> None:
    program = f"""
import sys, time
from pathlib import Path
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.engines.ray import RayEngine
out = Path({str(tmp_path)!r})
engine = RayEngine(Resources(), {cluster.address!r})
engine.place([Attempt("one", (sys.executable, "-c", {_JOB!r}), {{}}, out, out / "one.txt")])
time.sleep(60)
"""
    controller = subprocess.Popen([sys.executable, "-c", program])
    appears(tmp_path / "one.txt")
    controller.kill()
    controller.wait()
    assert appears(tmp_path / "saved") == "saved"


def test_a_cluster_that_cannot_carry_a_run_is_waited_for_aloud(
    connect: Callable[..., RayEngine], caplog: pytest.LogCaptureFixture
) -> None:
    connect(threads=64, gpus=0.5)
    assert "no node of the Ray cluster has 64 threads, 0.5 GPUs: runs wait" in caplog.text


def test_signals_stay_with_the_command(connect: Callable[..., RayEngine]) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        connect().stop()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_an_address_a_cluster_of_this_machine_is_started(
    tmp_path: Path, attempt: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(QatvalError, match="takes 1 threads, 900000 GB, which this machine does"):
        RayEngine(Resources(memory_gb=900_000))
    engine = RayEngine(Resources())
    engine.place([attempt("one", "import os; print(os.environ['OMP_NUM_THREADS'])")])
    assert until(engine, "one") == {"one": "ended"}
    engine.stop()
    assert (tmp_path / "one.txt").read_text() == "1\n"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "ray://127.0.0.1:10001"])
def test_an_address_without_a_cluster_is_refused_in_a_line(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_ANSWER_S", 2.0)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(QatvalError, match=f"^no Ray cluster answers at '{address}': expected") as e:
        RayEngine(Resources())
    assert "\n" not in str(e.value)


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(QatvalError, match=r"^Ray is not installed: pip install 'qatval\[ray\]'$"):
        RayEngine(Resources())
