"""A study of six short trainings, to which whatever befalls a cluster must make no difference.

What the scripts of all clusters share: the study, its controller as a process that can be killed,
and the comparison of what two such studies leave.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from qatval.core.files import sha256_of
from qatval.core.summary import SUMMARY_NAME, load_summary
from qatval.run.study.plan import read_plan
from qatval.run.study.standing import Entry, entries

STUDY = """\
variants = ["yolo10n"]
methods = ["ema"]
seeds = "0..5"
dataset = "embedded"
profile = "smoke"

[trainings.tiny]
epochs = 24
batch = 4
imgsz = 64
train_images = 16
val_images = 8
workers = 0
device = "cpu"

[resources]
threads = 1
minutes = 30
"""


def write_study(folder: Path, more: str = "") -> Path:
    """Write the study's file, with further tables."""
    file = folder / "six.toml"
    file.write_text(STUDY + more)
    return file


def start(file: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a controller; what it prints goes to the end of ``OUT.log``."""
    arguments = ["study", str(file), "--out", str(out), *options]
    program = f"import sys; from qatval.cli.main import main; sys.exit(main({arguments!r}))"
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-Pc", program], stdout=log, stderr=log)


def standing(out: Path) -> list[Entry]:
    """Return how the jobs stand; none before there is a plan."""
    return entries(read_plan(out), out) if (out / "study.json").exists() else []


def attempts(out: Path) -> dict[str, int]:
    """Return how many attempts each job took."""
    return {e.job.name: e.state.attempt if e.state else 0 for e in standing(out)}


def results(out: Path) -> dict[str, Mapping[str, object]]:
    """Return of each run that is complete what must not hang on where it took place."""
    found = {}
    for job in read_plan(out).jobs:
        for method, root in job.run_roots(out).items():
            if not (root / SUMMARY_NAME).exists():
                continue
            summary = load_summary(root / SUMMARY_NAME)
            (codes,) = root.glob("ultralytics/*/weights/integer.safetensors")
            found[f"{job.name} {method}"] = {
                "status": summary.status,
                "codes": sha256_of(codes),
                "metrics": summary.metrics,
                "history": [(epoch.value, epoch.metrics) for epoch in summary.history or ()],
            }
    return found


def differences(here: Path, there: Path) -> list[str]:
    """Return in lines how the results of two studies differ, of six complete runs each."""
    left, right = results(here), results(there)
    lines = [f"{out}: {len(found)} of 6 runs" for out, found in ((here, left), (there, right))
             if len(found) != 6]  # fmt: skip
    for run in sorted(left.keys() & right.keys()):
        lines += [
            f"{run}: {what} differ" for what in left[run] if left[run][what] != right[run][what]
        ]
    return lines


def wait(is_so: Callable[[], object], what: str, seconds: float = 240.0) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It took too long.
    """
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.2)


def processes(*variables: str) -> list[int]:
    """Return the processes that have variables, e.g. ``A=B``, in their environment."""
    wanted = {variable.encode() for variable in variables}
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= {*environment.read_bytes().split(b"\0")}:
                found.append(int(environment.parent.name))
    return found


def kill(processes: Iterable[int]) -> None:
    """Kill processes other than this one, as far as there are any of theirs left."""
    for process in processes:
        if process != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


class Diary:
    """What was done to a cluster and what came of it, printed as it happens and as a table."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rows: list[tuple[str, str, str]] = []

    def add(self, done: str, came: str = "") -> None:
        self._rows.append((f"{time.monotonic() - self._began:.0f} s", done, came))
        print(*self._rows[-1], sep=" | ", flush=True)

    def table(self) -> str:
        rows = [("when", "what was done", "what came of it"), ("---",) * 3, *self._rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def told(here: Path, there: Path, code: int, diary: Diary, cluster: str) -> int:
    """Print what was done and what came of it; return the script's exit code.

    Args:
        here: The study as this machine alone ran it.
        there: The study as the cluster ran it.
        code: Exit code of its last controller.
        diary: What was done meanwhile.
        cluster: What it is called.
    """
    wrong = differences(here, there)
    if code:
        wrong.append(f"the controller's exit code is {code}, expected 0")
    print(f"\n{diary.table()}\n")
    for job, number in attempts(there).items():
        print(f"{job}: {number} attempts on {cluster}, {attempts(here)[job]} here")
    print("\n".join(wrong) or "six runs complete, codes and metrics equal to those of this machine")
    return 1 if wrong else 0
