"""A Ray cluster on this machine: each node a `ray start` of its own, with all that it starts."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from study_of_six import kill, processes, wait

_NODE = "QATVAL_TEST_NODE"  # what all processes of a node have in their environment
_STORE = 100 * 2**20


class Cluster:
    """A context manager: within the block there is a head, and what `start` adds.

    Attributes:
        address: Where the cluster answers.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets take a short path
        with socket.create_server(("", 0)) as server:
            self.address = f"127.0.0.1:{server.getsockname()[1]}"

    def __enter__(self) -> Cluster:
        # Newer versions let nobody in without a token, older ones do not know it.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        try:
            port = self.address.rpartition(":")[2]
            place = f"--temp-dir={self._folder}"
            self._start("head", "--head", f"--port={port}", "--include-dashboard=false", place)
            check = ["health-check", "--address", self.address]
            wait(lambda: _ray(*check).returncode == 0, "the head")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, node: str) -> None:
        """Add a node with one place."""
        self._start(node, f"--address={self.address}")

    def _start(self, node: str, *options: str) -> None:
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        size = ["--num-cpus=1", f"--object-store-memory={_STORE}"]
        command = [*_PROGRAM, "start", "--block", "--disable-usage-stats", *options, *ports, *size]
        with (self._folder / f"{node}.out").open("ab") as out:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, _NODE: f"{self._folder}/{node}"},
            )

    def node_of(self, pid: int) -> str | None:
        """Return the node that a process is on, None if it is gone."""
        with contextlib.suppress(OSError):
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, value = variable.partition(b"=")
                if name.decode() == _NODE:
                    return Path(os.fsdecode(value)).name
        return None

    def lose(self, node: str) -> None:
        """Kill a node's daemon: its workers end, and what they have started is left to itself."""
        kill(pid for pid in self._on(node) if _is_raylet(pid))

    def fail(self, node: str) -> None:
        """Kill all processes of a node, as when it loses its power."""
        kill(self._on(node))

    def is_gone(self, node: str) -> bool:
        """Whether no process of a node is left."""
        return not self._on(node)

    def _on(self, node: str) -> list[int]:
        return processes(f"{_NODE}={self._folder}/{node}")

    def close(self) -> None:
        """Kill every node, and remove what they wrote."""
        for record in self._folder.glob("*.out"):
            self.fail(record.stem)
        shutil.rmtree(self._folder, ignore_errors=True)


_PROGRAM = [sys.executable, "-P", "-m", "ray.scripts.scripts"]


def _ray(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*_PROGRAM, *words], capture_output=True, check=False, timeout=60)


def _is_raylet(pid: int) -> bool:
    with contextlib.suppress(OSError):
        program, _, _ = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")
        return Path(os.fsdecode(program)).name == "raylet"
    return False
