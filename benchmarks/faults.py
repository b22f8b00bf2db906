"""What kills, full disks and second runs do to runs: nothing that the same command does not mend.

    python benchmarks/faults.py [--kills 200] [--disks 20] [--pairs 20] [--processes 2] [--seed 0]

Whole runs of three methods on a few embedded images. They are forked from a process that has
imported everything, but for a share of those that are killed: these are started as users start
them, and killed while they import. After each fault everything that is in the run root is looked
at, and when its run has been completed by the same command the result is compared with that of a
run that nobody disturbed, to the byte of weights and predictions. Ends with exit code 1 if anything
was lost.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each run has a core, and forks

import argparse
import collections
import hashlib
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import publish, table
from qatval.cli.main import main as qatval
from qatval.core.errors import DISK_FULL
from qatval.core.interruption import EXIT_CODE
from qatval.core.schema import violations
from qatval.core.summary import SUMMARY_NAME

FRESH = [sys.executable, "-c", "import sys; from qatval.cli.main import main; sys.exit(main())"]
METHODS = ("baseline", "ema+qc", "ptq")
KILLS = ("KILL", "TERM", "INT", "HUP", "TERM TERM", "INT INT", "TERM KILL", "HUP TERM")

# What tells one run from another of the same configuration, and what took how long.
_OF_ONE_RUN = ("run_id", "created_at", "timings", "resumed", "environment", "git", "files")
_OF_ONE_TRAINING = ("trajectory", "peak_memory_mb")
_TOO_LATE = " (had ended)"
_NOT_AN_END = "Traceback", "Exception ignored", "Error in atexit", "core dumped"


class LostError(Exception):
    """A fault had consequences."""


@dataclass
class Outcome:
    """What was done to one root, and what came of it."""

    done: list[str] = field(default_factory=list)
    lost: str = ""
    slowest: float = 0.0


@dataclass(frozen=True)
class Bench:
    """Where runs take place, and what they come to.

    Attributes:
        whole: The result of the run that nobody disturbs.
        lasts: Seconds that it takes.
    """

    folder: Path
    whole: dict[str, Any]
    lasts: float

    def command(self, root: Path, *more: str) -> list[str]:
        """Return the arguments of a run of three methods."""
        return command(self.folder, root, *more)


def command(folder: Path, root: Path, *more: str) -> list[str]:
    """Return the arguments of a run of three methods."""
    options = "--variant yolo10n --profile smoke --device cpu --epochs 2 --imgsz 64 --batch 8"
    options += " --start-statistics kept"  # shifted ones take as long as all the rest
    data = ["--coco-root", str(folder / "shapes"), "--cache-dir", str(folder / "cache")]
    methods = ["--method", ",".join(METHODS)]
    return ["run", *options.split(), *methods, *data, "--run-root", str(root), *more]


class Process:
    """A run in a process of its own, forked or started."""

    def __init__(self, command: list[str], log: Path, *, fresh: bool = False) -> None:
        self.log = log
        self._code: int | None = None
        with log.open("ab") as stream:
            if fresh:
                # Not Popen.wait: both kinds are waited for alike.
                self.pid = subprocess.Popen([*FRESH, *command], stdout=stream, stderr=stream).pid
            elif (pid := os.fork()) == 0:
                _become(command, stream.fileno())
            else:
                self.pid = pid

    def send(self, name: str) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.Signals[f"SIG{name}"])

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, at_most: float = 600.0) -> int:
        limit = time.monotonic() + at_most
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                os.kill(self.pid, signal.SIGKILL)
                raise LostError(f"process {self.pid} did not end within {at_most:.0f} s")
            time.sleep(0.01)
        return code

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


def _become(command: list[str], output: int) -> None:
    """Run a command in this forked process, and end it as an interpreter does, but sooner."""
    code = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        # As in a process of its own: this one's may have been told to ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = qatval(command)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# -- what must hold ------------------------------------------------------------------------------


def looked_at(root: Path) -> dict[str, dict[str, Any]]:
    """Return the summaries in a run root by method; all there are must be whole."""
    found = {}
    for method in METHODS:
        file = root / method / SUMMARY_NAME
        if not file.exists():
            continue
        content = file.read_bytes()
        try:
            summary = json.loads(content)
        except ValueError as error:
            raise LostError(f"{file}: {error}") from error
        if problems := violations(summary):
            raise LostError(f"{file}: {problems}")
        beside = file.with_name(f"{SUMMARY_NAME}.sha256")
        if beside.exists() and hashlib.sha256(content).hexdigest() not in beside.read_text():
            raise LostError(f"{file} is not what its digest says")
        if summary["status"] != "incomplete":
            artifacts_of(root / method, summary)
        found[method] = summary
    return found


def artifacts_of(root: Path, summary: dict[str, Any]) -> dict[str, str]:
    """Return the digests of what a finished run delivers."""
    digests = {}
    for name in ("weights", "predictions"):
        file = root / summary["artifacts"][name]
        if not file.is_file():
            raise LostError(f"{file} is named by a finished summary and not there")
        digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return digests


def result(root: Path) -> dict[str, Any]:
    """Return what a finished root comes to: all that may not depend on what happened to it."""
    found = looked_at(root)
    if set(found) != set(METHODS) or any(s["status"] == "incomplete" for s in found.values()):
        raise LostError(f"{root} is not complete: {[(m, s['status']) for m, s in found.items()]}")
    return {name: _essence(root / name, summary) for name, summary in found.items()}


def _essence(root: Path, summary: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in summary.items() if name not in _OF_ONE_RUN}
    kept["training"] = {k: v for k, v in kept["training"].items() if k not in _OF_ONE_TRAINING}
    kept["artifacts"] = {k: v for k, v in kept["artifacts"].items() if k != "run_root"}
    kept["history"] = [{**e, "seconds": None} for e in summary.get("history") or ()]
    return kept | {"digests": artifacts_of(root, summary)}


def no_trace(process: Process) -> None:
    """Make sure that a process said nothing that is not for users."""
    said = process.said()
    if any(sign in said for sign in _NOT_AN_END):
        raise LostError(f"traceback in the output:\n{said[-3000:]}")


def nothing_hidden(root: Path) -> None:
    if hidden := [str(path) for path in root.rglob(".*")]:
        raise LostError(f"left behind: {hidden}")


def completed(bench: Bench, root: Path, *more: str) -> None:
    """Give the same command until it has its way, and hold the result to the undisturbed one."""
    process = Process(bench.command(root, *more), root.with_suffix(".log"))
    code = process.wait()
    no_trace(process)
    if code != 0:
        raise LostError(f"{root} does not go on ({code}):\n{process.said()[-2000:]}")
    if (found := result(root)) != bench.whole:
        raise LostError(f"{root} differs: {_differences(bench.whole, found)}")
    nothing_hidden(root)
    shutil.rmtree(root)


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() | other.keys()
        return [d for n in names for d in _differences(one.get(n), other.get(n), f"{path}.{n}")]
    return [] if one == other else [f"{path}: {one!r:.80} / {other!r:.80}"]


# -- faults --------------------------------------------------------------------------------------


def kills(bench: Bench, number: int, draw: random.Random, outcome: Outcome, times: int) -> None:
    """Kill the runs of one root several times, then let the last one end."""
    root = bench.folder / f"kill{number}"
    replaces = draw.random() < 0.25
    more = ("--overwrite",) if replaces else ()
    old = {}
    if replaces:
        shutil.copytree(bench.folder / "whole", root)
        old = looked_at(root)
    for _ in range(times):
        fresh = draw.random() < 0.1
        how = draw.choice(KILLS)
        before = looked_at(root) if root.exists() else {}
        process = Process(bench.command(root, *more), root.with_suffix(".log"), fresh=fresh)
        # Before that the interpreter has not got to the program: its defaults apply.
        time.sleep(draw.uniform(0.5, 6.0) if fresh else draw.uniform(0.0, bench.lasts))
        first, *second = how.split()
        sent = time.monotonic()
        process.send(first)
        for name in second:
            time.sleep(draw.uniform(0.0, 0.5))
            process.send(name)
        code = process.wait()
        seconds = time.monotonic() - sent
        no_trace(process)
        _expect(how, code)
        after = looked_at(root) if root.exists() else {}
        for method, summary in before.items():
            finished = summary["status"] != "incomplete"
            now = after.get(method)
            if now is None:
                raise LostError(f"{root}/{method} has no summary after {how}")
            replacing = now.get("error", {}) or {}
            if finished and now["status"] == "incomplete" and replacing.get("type") != "Replacing":
                raise LostError(f"{root}/{method} was finished before {how}")
            if finished and not replaces and now["run_id"] != summary["run_id"]:
                raise LostError(f"{root}/{method} is another run after {how}")
        if old and set(after) != set(old):
            raise LostError(f"{root} lost {set(old) - set(after)}")
        outcome.slowest = max(outcome.slowest, seconds)
        ended = _TOO_LATE if code == 0 else ""
        outcome.done.append(f"{how}{' while starting' if fresh else ''}{ended}")
        if code == 0:
            break
    if replaces and code == 0:  # it would be replaced once more
        if result(root) != bench.whole:
            raise LostError(f"{root} differs: {_differences(bench.whole, result(root))}")
        shutil.rmtree(root)
        return
    completed(bench, root, *(more if code else ("--restart", "--overwrite")))


def _expect(how: str, code: int) -> None:
    signals = [signal.Signals[f"SIG{name}"] for name in how.split()]
    first = -9 if signals[0] == signal.SIGKILL else EXIT_CODE
    # The second comes while the first is being obeyed, or when the interpreter ends.
    second = [code for number in signals[1:] for code in (128 + number, -number)]
    ending = [-signals[0]]  # while the interpreter ends, which is after the command
    if code not in (0, first, *second, *ending):
        raise LostError(f"exit code {code} after {how}")


def full_disk(bench: Bench, number: int, draw: random.Random, outcome: Outcome) -> None:
    """Run on a disk that is full at some point, then make room and go on."""
    disk = bench.folder / f"disk{number}"
    disk.mkdir()
    size = draw.choice((64, 256, 1024, 4096, 8192, 16384, 24576, 32768, 49152))
    size += draw.randrange(size)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    try:
        root = disk / "run"
        replaces = draw.random() < 0.3
        if replaces:
            _grow(disk)
            shutil.copytree(bench.folder / "whole", root)
            _shrink(disk, size)
        process = Process(
            bench.command(root, *(["--overwrite"] * replaces)), disk.with_suffix(".log")
        )
        code = process.wait()
        no_trace(process)
        looked_at(root) if root.exists() else {}
        if code not in (0, 1):
            raise LostError(f"exit code {code} on a full disk")
        errors = [line for line in process.said().splitlines() if "qatval: error:" in line]
        full = [os.strerror(number) for number in DISK_FULL]
        if code == 1 and not (len(errors) == 1 and any(text in errors[0] for text in full)):
            raise LostError(f"a full disk is not what is told: {process.said()[-2000:]}")
        if replaces and code == 1 and result(root) != bench.whole:
            raise LostError(f"{root}: the finished run suffered from the one to replace it")
        outcome.done.append(f"disk {'full' if code else 'nearly full'}")
        _grow(disk)
        completed(bench, root, *(["--overwrite"] if replaces or code == 0 else []))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)


def _shrink(disk: Path, room: int) -> None:
    status = os.statvfs(disk)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize // 1024
    subprocess.run(["mount", "-o", f"remount,size={used + room}k", str(disk)], check=True)


def pair(bench: Bench, number: int, draw: random.Random, outcome: Outcome) -> None:
    """Let two runs want one root, the second at any time of the first."""
    root = bench.folder / f"pair{number}"
    logs = [root.with_suffix(f".{n}.log") for n in "ab"]
    first = Process(bench.command(root), logs[0])
    time.sleep(draw.uniform(0.0, draw.choice((0.05, bench.lasts))))
    second = Process(bench.command(root), logs[1])
    codes = sorted((first.wait(), second.wait()))
    for process in (first, second):
        no_trace(process)
    said = first.said() + second.said()
    refused = "is in use by process" in said or "already holds a finished run" in said
    if codes != [0, 1] or not refused:
        raise LostError(f"two runs on {root} ended with {codes}:\n{said[-2000:]}")
    if (found := result(root)) != bench.whole:
        raise LostError(f"{root} differs: {_differences(bench.whole, found)}")
    nothing_hidden(root)
    shutil.rmtree(root)
    outcome.done.append("pair")


# -- all of it -----------------------------------------------------------------------------------

FAULTS = {"kill": kills, "disk": full_disk, "pair": pair}


def _prepared(folder: Path) -> Bench:
    """Import what runs import, for those that are forked, and make the run to compare with."""
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    import qatval.run.pipeline  # noqa: F401
    from qatval.data.shapes import draw_dataset

    draw_dataset(folder / "shapes", train_images=16, val_images=8, size=64)
    root = folder / "whole"
    started = time.monotonic()
    process = Process(command(folder, root), root.with_suffix(".log"))
    if code := process.wait():
        raise SystemExit(f"the undisturbed run ended with {code}:\n{process.said()}")
    return Bench(folder, result(root), time.monotonic() - started)


def _attempted(task: tuple[Bench, str, int, int, tuple[Any, ...]]) -> Outcome:
    bench, fault, number, seed, rest = task
    outcome = Outcome()
    try:
        FAULTS[fault](bench, number, random.Random(seed), outcome, *rest)
    except LostError as lost:
        outcome.lost = f"{fault} {number}: {lost}"
    return outcome


Task = tuple[Bench, str, int, int, tuple[Any, ...]]


def _kills(bench: Bench, left: int, draw: random.Random) -> Iterator[Task]:
    """Yield roots with some kills each, of which those that come too late do not count."""
    while left > 0:
        times = min(draw.randint(1, 5), left)
        yield bench, "kill", draw.randrange(2**32), draw.randrange(2**32), (times,)
        left -= times


def _others(bench: Bench, fault: str, count: int, draw: random.Random) -> Iterator[Task]:
    for number in range(count):
        yield bench, fault, number, draw.randrange(2**32), ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disks", type=int, default=20, help="needs the right to mount")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="qatval-faults-") as temporary:
        os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(temporary) / "settings"))
        bench = _prepared(Path(temporary))
        with multiprocessing.get_context("fork").Pool(args.processes) as pool:
            draw = random.Random(args.seed)

            def suffer(tasks: Iterator[Task]) -> int:
                suffered = 0
                for outcome in pool.imap_unordered(_attempted, tasks):
                    outcomes.append(outcome)
                    suffered += len([what for what in outcome.done if not what.endswith(_TOO_LATE)])
                    at = f"{time.monotonic() - began:5.0f} s"
                    print(f"{at}: {', '.join(outcome.done)} {outcome.lost}", file=sys.stderr)
                return suffered

            left = args.kills
            while left > 0 and not any(outcome.lost for outcome in outcomes):
                left -= suffer(_kills(bench, left, draw))
            suffer(_others(bench, "disk", args.disks, draw))
            suffer(_others(bench, "pair", args.pairs, draw))
    counts = collections.Counter(what for outcome in outcomes for what in outcome.done)
    lost = sum(bool(outcome.lost) for outcome in outcomes)
    rows = [[what, str(number)] for what, number in sorted(counts.items())]
    rows.append(["**all**", str(counts.total())])
    rows.append(["**roots invalid, lost or different, or with a traceback**", str(lost)])
    publish(
        "faults",
        "Kills, full disks, and second runs on a root",
        f"`python benchmarks/faults.py --kills {args.kills} --disks {args.disks} --pairs "
        f"{args.pairs} --seed {args.seed}`: {', '.join(METHODS)}, 16 images, 2 epochs; a run that "
        f"nobody disturbs takes {bench.lasts:.1f} s. After each fault the roots hold only valid "
        "summaries, and what was finished still is; the same command then completes the run, whose "
        "summary, weights and predictions equal those of the undisturbed one.\n\n"
        f"{table(('fault', 'times'), rows)}\n\nThe slowest end after a signal took "
        f"{max(outcome.slowest for outcome in outcomes):.1f} s, all of it "
        f"{(time.monotonic() - began) / 60:.0f} minutes.",
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
