"""The Slurm engine without Slurm: its tasks for real on this machine, its commands by stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from qatval.core import interruption
from qatval.core.errors import QatvalError
from qatval.run.study.engines import Attempt, Resources
from qatval.run.study.engines import squeue as squeue_module
from qatval.run.study.engines.slurm import SlurmEngine
from qatval.run.study.engines.slurm_task import Command

pytest.importorskip("submitit", reason="what the extra 'slurm' installs")

RESOURCES = Resources(threads=2, memory_gb=3.5, minutes=30)
PATIENCE_S = 20.0

# Says what this machine's processes are about: submitit's local executor names jobs after them.
PROCESSES = """
for id in $(echo "$*" | sed -n 's/.*--jobs=\\([0-9,]*\\).*/\\1/p' | tr , ' '); do
    if grep -qs '^State:.[^Z]' /proc/$id/status
    then echo "$id|RUNNING|0|None|"
    else echo "$id|COMPLETED|0|None|"
    fi
done
"""
# Keeps the scripts it is given as 1.sh, 2.sh, ... and refuses arrays beyond what `limit` leaves.
SBATCH = """
cd "$(dirname "$0")"
env > environment
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
left=$(( $(cat limit 2> /dev/null || echo 1000) - ${last:-0} - 1 ))
if [ -e refusal ]; then cat refusal >&2; exit 1; fi
if [ $left -lt 0 ]; then
    echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
    exit 1
fi
echo $left > limit
count=$(( $(ls *.sh 2> /dev/null | wc -l) + 1 ))
cp "$1" $count.sh
echo "Submitted batch job $count"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of stand-ins for Slurm's commands, first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(squeue_module, "EVERY_S", 0.02)
    program(folder, "srun", "")
    program(folder, "sbatch", SBATCH)
    program(folder, "scontrol", "echo 'MaxArraySize            = 3'")
    program(folder, "squeue", 'cat "$(dirname "$0")/queue"')
    return folder


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def local(programs: Path, tmp_path: Path) -> Iterator[Callable[[], SlurmEngine]]:
    """Make engines whose tasks are processes of this machine."""
    program(programs, "squeue", PROCESSES)
    engines: list[SlurmEngine] = []

    def make() -> SlurmEngine:
        engines.append(SlurmEngine(RESOURCES, tmp_path / "out", {}, cluster="local"))
        return engines[-1]

    yield make
    assert not engines or not engines[-1].held(), "a test leaves processes"


def engine(tmp_path: Path, **parameters: Any) -> SlurmEngine:
    return SlurmEngine(RESOURCES, tmp_path / "out", parameters)


def attempt(tmp_path: Path, code: str, job: str = "a/seed0") -> Attempt:
    folder = tmp_path / "jobs" / job
    folder.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-uc", code)
    return Attempt(job, command, {"COLOUR": "blue"}, tmp_path, folder / "log.txt")


def attempts(tmp_path: Path, count: int) -> list[Attempt]:
    return [attempt(tmp_path, "", f"a/seed{seed}") for seed in range(count)]


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def ends(engine: SlurmEngine) -> dict[str, str]:
    """Return all ends, when there are no more to come."""
    found: dict[str, str] = {}

    def all_ended() -> bool:
        found.update(engine.ended())
        return not engine.held()

    until(all_ended)
    return found


def answers(engine: SlurmEngine, count: int = 3) -> dict[str, str]:
    """Return what has ended by a few answers of the queue."""
    found: dict[str, str] = {}
    seen = 0
    look = engine._queue.look

    def counting(tasks: Any) -> Any:
        nonlocal seen
        asked = engine._queue._answer
        known = look(tasks)
        seen += asked is not None and engine._queue._answer is not asked
        return known

    with mock.patch.object(engine._queue, "look", counting):
        until(lambda: found.update(engine.ended()) or seen >= count)
    return found


def test_a_task_is_the_process_that_was_asked_for(
    local: Callable[[], SlurmEngine], tmp_path: Path
) -> None:
    code = "import os; print(os.environ['COLOUR'], os.getcwd())"
    asked = attempt(tmp_path, code)
    asked.log.write_text("an earlier attempt\n")
    placed = local()
    placed.place([asked])
    assert placed.held() == {"a/seed0"}
    assert "Slurm" in ends(placed)["a/seed0"]
    assert asked.log.read_text() == f"an earlier attempt\nblue {tmp_path}\n"


def test_what_slurm_announces_is_saved_for_and_gone_on_from(
    local: Callable[[], SlurmEngine], tmp_path: Path
) -> None:
    """Slurm sends the signal to all processes of a task, also to one that does not know it."""
    code = """
import os, pathlib, signal, sys, time
saved = pathlib.Path("saved")
def save(*_):
    time.sleep(0.3)
    saved.touch()
    print("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
if saved.exists():
    print("goes on")
else:
    os.kill(os.getpid(), signal.SIGUSR2)
    print("begins")
    pathlib.Path("parent").write_text(str(os.getppid()))
    time.sleep(60)
"""
    asked = attempt(tmp_path, code)
    placed = local()
    placed.place([asked])
    until(lambda: (tmp_path / "parent").exists() and (tmp_path / "parent").read_text())
    os.kill(int((tmp_path / "parent").read_text()), signal.SIGUSR2)
    ends(placed)
    assert asked.log.read_text().split("\n") == ["begins", "saved", "goes on", ""]


def test_who_does_not_end_is_not_waited_for_for_ever(programs: Path, tmp_path: Path) -> None:
    """As a program of its own: it ends as Slurm's tasks do."""
    program = f"""
import pathlib, signal, sys
from qatval.run.study.engines import Attempt
from qatval.run.study.engines.slurm_task import Command
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
log = pathlib.Path({str(tmp_path / "log")!r})
command = Command(Attempt("a", (sys.executable, "-c", deaf), {{}}, log.parent, log), 0.2)
def announced(*_):
    again = command.checkpoint()
    command._process.kill()
    sys.exit(again.function.attempt.job)
signal.signal(signal.SIGALRM, announced)
signal.setitimer(signal.ITIMER_REAL, 0.5)
command()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=15
    )
    assert done.stderr.split() == ["a"]


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("1", 0)]
)
def test_a_task_ends_with_the_code_of_its_process(tmp_path: Path, end: str, code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        Command(attempt(tmp_path, f"import os, sys; {end}"), 1.0)()
    assert ended.value.code == code


def test_tasks_outlive_their_engine(local: Callable[[], SlurmEngine], tmp_path: Path) -> None:
    code = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)"
    first = local()
    first.place([attempt(tmp_path, code)])
    said = first.stop()
    second = local()
    assert second.held() == {"a/seed0"}
    task = second._placed["a/seed0"]
    assert said == (
        "1 job stays in Slurm's queue and will be taken up again, unless "
        f"'scancel {task}' ends them"
    )
    assert answers(second) == {}
    (tmp_path / "go").touch()
    assert ends(second) == {"a/seed0": f"Slurm {task}: COMPLETED"}
    assert local().held() == set()


def test_what_slurm_has_taken_is_recorded_whatever_signal_comes(
    programs: Path, tmp_path: Path, heeded_signals: None
) -> None:
    program(programs, "sbatch", f"kill -TERM {os.getpid()}{SBATCH}")
    placed = engine(tmp_path)
    with interruption.listening(), pytest.raises(interruption.Interrupted):
        placed.place(attempts(tmp_path, 2))
    assert engine(tmp_path).held() == {"a/seed0", "a/seed1"}


def test_arrays_are_as_large_as_the_cluster_takes_them(programs: Path, tmp_path: Path) -> None:
    placed = engine(tmp_path, partition="long", setup=["module load cuda"])
    placed.place(attempts(tmp_path, 7))
    assert sorted(placed._placed.values()) == ["1_0", "1_1", "1_2", "2_0", "2_1", "2_2", "3"]
    script = (programs / "1.sh").read_text()
    for line in (
        "#SBATCH --array=0-2%3",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=3584MB",
        "#SBATCH --partition=long",
        "#SBATCH --requeue",
        "#SBATCH --time=30",
        "module load cuda",
    ):
        assert line in script.splitlines()
    assert "--gpus-per-node" not in script
    assert "--cpus-per-task=2" in next(line for line in script.split("\n") if "srun" in line)


@pytest.mark.parametrize(("gpus", "more", "line"), [
    (0.5, {}, "#SBATCH --gpus-per-node=1"),
    (2, {}, "#SBATCH --gpus-per-node=2"),
    (0.5, {"gres": "shard:1"}, "#SBATCH --gres=shard:1"),
])  # fmt: skip
def test_gpus_are_whole_or_what_the_user_names(
    programs: Path, tmp_path: Path, gpus: float, more: dict[str, Any], line: str
) -> None:
    placed = SlurmEngine(Resources(gpus=gpus, minutes=5), tmp_path / "out", more)
    placed.place(attempts(tmp_path, 1))
    script = (programs / "1.sh").read_text().splitlines()
    assert [each for each in script if each.startswith("#SBATCH --g")] == [line]


def test_what_there_is_no_room_for_is_submitted_later(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qatval.run.study.engines.slurm._AGAIN_S", 0.0)
    (programs / "limit").write_text("4")
    (programs / "queue").write_text("1_0|RUNNING|0|None|\n")
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 6))
    assert len(placed._placed) == 4
    assert len(placed.held()) == 6
    (programs / "limit").write_text("2")
    until(lambda: placed.ended() is None or len(placed._placed) == 6)
    assert placed.held() == placed._placed.keys()


@pytest.mark.parametrize(
    "refusal",
    [
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Unable to contact slurm controller (connect failure)",
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(
    programs: Path, tmp_path: Path, refusal: str
) -> None:
    (programs / "refusal").write_text(refusal)
    placed = engine(tmp_path)
    with pytest.raises(QatvalError, match=r"^sbatch: (Batch job .*|Unable .*) of the study$"):
        placed.place(attempts(tmp_path, 2))
    assert placed.held() == set()
    assert list((tmp_path / "out" / "slurm").iterdir()) == []


def test_a_controller_that_is_away_is_waited_for(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qatval.run.study.engines.slurm._AGAIN_S", 0.0)
    (programs / "queue").write_text("1|RUNNING|0|None|\n")
    placed = engine(tmp_path)
    first, second = attempts(tmp_path, 2)
    placed.place([first])
    (programs / "refusal").write_text("sbatch: error: Socket timed out on send/recv operation")
    placed.place([second])
    assert placed.held() == {first.job, second.job}
    assert placed._placed == {first.job: "1"}
    (programs / "refusal").unlink()
    until(lambda: placed.ended() is None or second.job in placed._placed)


def test_a_study_started_within_a_job_is_not_of_that_job(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/other.conf")
    engine(tmp_path).place(attempts(tmp_path, 1))
    seen = (programs / "environment").read_text()
    assert "SLURM_MEM_PER_CPU" not in seen
    assert "SLURM_CONF=/etc/slurm/other.conf" in seen
    assert os.environ["SLURM_MEM_PER_CPU"] == "100"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1_0|CANCELLED|15|None|", "CANCELLED"),
        ("1_0|FAILED|256|NonZeroExitCode|", "FAILED, exit code 1"),
        ("1_0|NODE_FAIL|0|None|", "NODE_FAIL"),
        ("1_0|TIMEOUT|0|TimeLimit|", "TIMEOUT"),
        ("1_0|OUT_OF_MEMORY|125|OutOfMemory|", "OUT_OF_MEMORY"),
        ("1_0|PREEMPTED|0|None|", "PREEMPTED"),
        ("1_0|COMPLETED|0|None|", "COMPLETED"),
    ],
)
def test_an_end_is_told_in_slurms_words(
    programs: Path, tmp_path: Path, line: str, words: str
) -> None:
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 2))
    (programs / "queue").write_text(f"{line}\n1_1|RUNNING|0|None|\n")
    assert answers(placed) == {"a/seed0": f"Slurm 1_0: {words}"}
    assert placed.held() == {"a/seed1"}


@pytest.mark.parametrize(
    "state", ["PENDING", "COMPLETING", "REQUEUED", "SUSPENDED", "A_WORD_OF_ANOTHER_VERSION"]
)
def test_what_comes_back_has_not_ended(programs: Path, tmp_path: Path, state: str) -> None:
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 1))
    (programs / "queue").write_text(f"1|{state}|0|BeginTime|\n")
    assert answers(placed) == {}
    assert placed.held() == {"a/seed0"}


def test_a_task_is_gone_when_it_is_missing_twice_in_a_row(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once may be a question that was asked before it was placed."""
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 1))
    there = {"1": squeue_module.Task("RUNNING", 0, "None")}
    known = iter([{}, there, {}, None, there, {}, {}])
    monkeypatch.setattr(placed._queue, "look", lambda tasks: next(known))
    assert [placed.ended() for _ in range(6)] == [{}] * 6
    assert placed.ended() == {"a/seed0": "Slurm 1: gone from the queue"}
    assert placed.held() == set()


def test_a_job_that_slurm_has_forgotten_is_gone(programs: Path, tmp_path: Path) -> None:
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 1))
    complaint = "slurm_load_jobs error: Invalid job id specified"
    program(programs, "squeue", f"echo '{complaint}' >&2; exit 1")
    assert ends(placed) == {"a/seed0": "Slurm 1: gone from the queue"}


@pytest.mark.parametrize(
    "trouble",
    [
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
        "echo 'Segmentation fault'",
        "echo '1|RUNN'",
        "printf '1|COMPLETED|0|None|\\n\\377\\376||\\n'",
        "kill -9 $$",
        "exit 127",
    ],
)
def test_a_queue_that_does_not_answer_ends_nothing(
    programs: Path, tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 1))
    program(programs, "squeue", trouble)
    assert answers(placed, 4) == {}
    assert placed.held() == {"a/seed0"}
    assert len([each for each in caplog.messages if each.startswith("squeue: ")]) == 1
    program(programs, "squeue", "echo '1|COMPLETED|0|None|'")
    assert ends(placed) == {"a/seed0": "Slurm 1: COMPLETED"}


def test_the_queue_is_never_waited_for(programs: Path, tmp_path: Path) -> None:
    program(programs, "squeue", "sleep 0.5; echo '1|COMPLETED|0|None|'")
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 1))
    began = time.monotonic()
    assert placed.ended() == {}
    assert placed.ended() == {}
    assert time.monotonic() - began < 0.4
    assert ends(placed) == {"a/seed0": "Slurm 1: COMPLETED"}


def test_what_waits_for_somebodys_hand_is_said_once(
    programs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (programs / "queue").write_text(
        "1_0|PENDING|0|Resources|\n1_1|PENDING|0|JobHeldAdmin|\n1_2|PENDING|0|JobHeldAdmin|\n"
    )
    placed = engine(tmp_path)
    placed.place(attempts(tmp_path, 3))
    answers(placed)
    (said,) = caplog.messages
    assert said.startswith("Slurm lets 1_1 wait, perhaps others too (JobHeldAdmin)")


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"partiton": "long"}, "takes no 'partiton'"),
        ({"time": 5}, "takes no 'time': time and processes are settled by"),
        ({"nodes": 2}, "takes no 'nodes'"),
        ({"setup": "module load cuda"}, "Expected `array`, got `str` - at `..setup`"),
        ({"srun_args": "--mpi=none"}, "Expected `array`, got `str` - at `..srun_args`"),
        (
            {"additional_parameters": ["--x"]},
            "Expected `object`, got `array` - at `..additional_parameters`",
        ),
        ({"signal_delay_s": "long"}, "Expected `int`, got `str` - at `..signal_delay_s`"),
    ],
)
def test_a_wrong_parameter_is_one_line(
    programs: Path, tmp_path: Path, parameters: dict[str, Any], reason: str
) -> None:
    with pytest.raises(QatvalError, match=rf"^\[slurm\].*{reason}.*$") as refused:
        engine(tmp_path, **parameters)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_slurm_is_told_after_how_long_it_may_end_an_attempt(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(QatvalError, match=r"^\[resources\] names no minutes"):
        SlurmEngine(Resources(), tmp_path / "out", {})


def test_what_is_missing_is_named(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QatvalError, match=r"^no sbatch on PATH: .*--launcher$"):
        engine(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(QatvalError, match=r"pip install 'qatval\[slurm\]'$"):
        engine(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 1}', b"\xff"])
def test_a_damaged_record_is_one_line(programs: Path, tmp_path: Path, content: bytes) -> None:
    record = tmp_path / "out" / "slurm" / "placed.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(content)
    with pytest.raises(QatvalError, match=r"^.*placed\.json cannot be read .*remove it when"):
        engine(tmp_path)
