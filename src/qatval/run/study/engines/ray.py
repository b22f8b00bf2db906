"""Attempts as tasks of a Ray cluster: each waits for a process that it has started.

Ray places tasks where processors and GPUs are free and shows each the GPUs that are its own. It
tries none again: what is lost with a node ends here, and the controller places it anew. Tasks end
with the engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qatval.core.environment import available_cores
from qatval.core.errors import QatvalError
from qatval.run.study.engines import Attempt, Resources, process

_LOCAL = "local"
_ADDRESS = "RAY_ADDRESS"
_ANSWER_S = 20.0
"""Seconds that a cluster has to answer; Ray itself asks for minutes."""
_POLL_S = 0.2
_STORE = 100 * 2**20  # bytes, about the least that Ray takes: nothing is kept in it

# A worker that ends kills the processes that it has started, which could save nothing then: they
# notice by themselves that it is gone.
_SPARED = {"RAY_kill_child_processes_on_worker_exit": "0"}

_log = logging.getLogger(__name__)


class RayEngine:
    """Runs attempts on a Ray cluster, or on one that it starts on this machine.

    Attributes:
        resources: What each takes.
    """

    def __init__(self, resources: Resources, address: str | None = None) -> None:
        """Connect to a cluster.

        Args:
            resources: What each attempt takes. Ray knows no time limit.
            address: ``HOST:PORT`` of the cluster, "auto" for the one that runs on this machine,
                "local" for a new one of this machine alone; None for what the environment's
                ``RAY_ADDRESS`` says, or else a new one.

        Raises:
            QatvalError: If Ray is not installed, no cluster answers within half a minute, or this
                machine alone cannot carry an attempt.
        """
        self.resources = resources
        address = address or os.environ.get(_ADDRESS) or _LOCAL
        self._ray = _connected(address, resources.threads)
        self._jobs: dict[Any, str] = {}  # by the reference to what the task returns
        try:
            self._refuse_or_warn(address)
        except QatvalError:
            self._ray.shutdown()
            raise
        memory = resources.memory_gb
        self._task = self._ray.remote(
            num_cpus=resources.threads,
            num_gpus=resources.gpus,
            memory=int(memory * 1e9) if memory else None,
            max_retries=0,
        )(_carry_out)

    def place(self, attempts: Sequence[Attempt]) -> None:
        """Hand attempts to Ray, which keeps them until there is room."""
        for one in attempts:
            plain = replace(one, environment=dict(one.environment))  # which can be sent
            self._jobs[self._task.remote(plain)] = one.job

    def held(self) -> set[str]:
        """Return the jobs of the tasks that wait or run, or have ended without being told of."""
        return set(self._jobs.values())

    def ended(self) -> dict[str, str]:
        """Return what has ended since the last call."""
        done = self._done(0.0)
        return {self._jobs.pop(task): self._words(task) for task in done}

    def stop(self) -> str:
        """Call off all tasks, whose processes save what they have; wait for that."""
        for task in self._jobs:
            self._ray.cancel(task)
        self._done(process.PATIENCE_S + 10.0)
        self._ray.shutdown()
        self._jobs.clear()
        return "what ran on Ray has ended, with all kept"

    def _done(self, seconds: float) -> list[Any]:
        """Return the tasks that have ended, after waiting for all of them for some seconds."""
        tasks = list(self._jobs)
        if not tasks:
            return []
        done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
        return list(done)

    def _words(self, task: Any) -> str:
        try:
            return str(self._ray.get(task))
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            return f"lost by Ray ({type(error).__name__}: {reason})"

    def _refuse_or_warn(self, address: str) -> None:
        """Say that no node is large enough; only a cluster of several can get one that is."""
        needs = {
            "CPU": float(self.resources.threads),
            "GPU": self.resources.gpus,
            "memory": (self.resources.memory_gb or 0.0) * 1e9,
        }
        offers = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(offer.get(k, 0.0) >= v for k, v in needs.items()) for offer in offers):
            return
        wanted = f"{self.resources.threads} threads"
        wanted += f", {self.resources.gpus:g} GPUs" if self.resources.gpus else ""
        wanted += f", {self.resources.memory_gb:g} GB" if self.resources.memory_gb else ""
        if address == _LOCAL:
            raise QatvalError(
                f"a run of this study takes {wanted}, which this machine does not have: give the "
                "study others under [resources], or the address of a cluster under [ray]"
            )
        _log.warning("no node of the Ray cluster has %s: runs wait until one joins", wanted)


def _connected(address: str, threads: int) -> Any:
    """Return Ray, connected to a cluster."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise QatvalError("Ray is not installed: pip install 'qatval[ray]'") from error
    settings: dict[str, Any] = {}
    if address == _LOCAL:
        places = max(available_cores(), threads)  # more than there are take longer
        settings = {"num_cpus": places, "object_store_memory": _STORE}
    else:
        _require_answer(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _SPARED},
            **settings,
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise QatvalError(
            f"cannot use the Ray cluster at '{address}' ({type(error).__name__}: {reason}); "
            "expected one of the same versions of Ray and Python"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place
    return ray


def _require_answer(address: str) -> None:
    """Refuse an address at which no cluster answers."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    check = [*ray, "health-check", "--skip-version-check", "--address", address]
    with contextlib.suppress(subprocess.TimeoutExpired):
        answer = subprocess.run(
            check, capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
        if answer.returncode == 0:
            return
        if "AuthenticationError" in answer.stderr:
            raise QatvalError(
                f"the Ray cluster at '{address}' lets nobody in without its token: set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what its head has in ~/.ray/auth_token"
            )
    raise QatvalError(
        f"no Ray cluster answers at '{address}': expected HOST:PORT as 'ray start --head' prints "
        "it, or 'auto' on a machine of the cluster; give it under [ray] or in "
        f"{_ADDRESS}"
    )


def _carry_out(attempt: Attempt) -> str:
    """Run an attempt's process in a worker of Ray's; return in a few words how it has ended.

    What ends the task ends the process, by SIGTERM and after its time to save by SIGKILL.
    """
    # Ray cancels by SIGINT, which a cluster that nohup or a shell's ``&`` has started would ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # in a session of its own it is not of the group that Ray may kill with its worker
        running = process.start(attempt)
    except OSError as error:
        return f"could not be started ({error})"
    try:
        process.wait(running, poll_s=_POLL_S)
    except BaseException:
        process.ask_to_end(running)
        process.wait(running, process.PATIENCE_S, poll_s=_POLL_S)
        process.end(running)
        raise
    return process.end(running)
