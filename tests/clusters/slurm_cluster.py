"""A Slurm cluster of two nodes on this machine: the daemons themselves, no database, no root.

It takes Debian's ``slurm-wlm`` and ``munge`` (or another distribution's counterparts). Everything
that the daemons write is in one temporary folder, and they end with the `Cluster`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from study_of_six import kill, processes, wait

NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIGURATION = """\
ClusterName=qatval
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job starts again when the credential of its last start has run out, 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=20
MaxArraySize=5
SlurmdTimeout=10
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=work Nodes=n1,n2 Default=YES DefMemPerNode=500 MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """Return the programs that a cluster takes and this machine lacks."""
    return [name for name in (*DAEMONS, "sbatch", "srun", "squeue") if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Cluster:
    """A context manager: the cluster runs within the block, and its commands find it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qatval-slurm-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "seed", "pid")]
            place = f"--socket={self.folder}/munge.socket"
            self._start("munged", "munged", "--foreground", "--force", place, *files)
            wait(self.folder.joinpath("munge.socket").exists, "munged")
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start(node)
            wait(lambda: self.nodes() == dict.fromkeys(NODES, "idle"), "two idle nodes")
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

    def _configure(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        (self.folder / "state").mkdir()
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(3)]
            ports = [each.getsockname()[1] for each in sockets]
        configuration = self.folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                host=socket.gethostname(), user=getpass.getuser(), folder=self.folder, ports=ports
            )
        )
        os.environ["SLURM_CONF"] = str(configuration)

    def _start(self, name: str, program: str, *arguments: str) -> None:
        path = _program(program)
        assert path is not None
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [path, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def start(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start(node, "slurmd", "-D", "-N", node)

    def nodes(self) -> dict[str, str]:
        """Return the state of each node, in the words of ``sinfo``."""
        lines = command("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).split("\n")
        return dict(line.split() for line in lines if line)

    def close(self) -> None:
        """End every job and every daemon, and remove what they wrote."""
        if "slurmctld" in self._daemons:
            command("scancel", f"--user={getpass.getuser()}", check=False)
            with contextlib.suppress(TimeoutError):
                wait(lambda: not command("squeue", "--noheader", check=False), "the last job")
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        kill(processes(f"SLURM_CONF={self.folder}/slurm.conf"))
        os.environ.pop("SLURM_CONF", None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def fail(self, node: str) -> None:
        """Kill a node's daemon and all that runs there, as when it loses its power."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        jobs = command("squeue", "--noheader", f"--nodelist={node}", "--format=%A").split()
        daemons = [f"slurmstepd: [{job}.".encode() for job in jobs]
        kill(
            int(line.parent.name)
            for line in Path("/proc").glob("[0-9]*/cmdline")
            if line.read_bytes().startswith(tuple(daemons))
        )
        kill(processes(f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.folder}/slurm.conf"))


def command(*words: str, check: bool = True) -> str:
    """Return what a command prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()
