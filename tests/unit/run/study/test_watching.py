"""How a study is shown: a table that fits on a screen, or a line for every change."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from qatval.run.study.plan import Job
from qatval.run.study.standing import Entry, Word
from qatval.run.study.state import JobState
from qatval.run.study.watching import counts, line, print_entries, watching


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """Return what is shown, without what gives it its looks."""
        return re.sub(r"\x1b\[[\d;]*m", "", self.getvalue()).splitlines()


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_COLOR", "1")


def entry(number: int, word: Word, **fields: Any) -> Entry:
    job = Job(f"tiny/seed{number}/baseline", ("baseline",), number, {})
    if word == "waiting":
        return Entry(job, word)
    known = {"attempt": 1, "host": "node7", "pid": 1, "started_at": "2026-01-01T00:00:00Z"}
    standing = "running" if word == "silent" else word
    return Entry(job, word, JobState(**{"standing": standing, **known, **fields}), number)


MIXED = [
    entry(0, "done", value=0.4123, seconds=75.0),
    entry(
        1, "running", stage="training", epoch=3, epochs=10, value=0.312, left_s=95.0, device="H100"
    ),
    entry(2, "failed", error="out of memory: try --batch 8"),
    entry(3, "silent", stage="training", epoch=1, attempt=2),
    entry(4, "waiting"),
]


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (MIXED[0], "done, mAP50-95 0.412, 1 min 15 s"),
        (MIXED[1], "running, training, epoch 3/10, node7, H100, attempt 1"),
        (MIXED[2], "failed, out of memory: try --batch 8"),
        (MIXED[3], "silent, training, epoch 1, node7, attempt 2"),
        (MIXED[4], "waiting"),
        (entry(1, "failed", error="a\x1b[2J\nb"), r"failed, a\x1b[2J\nb"),
    ],
)
def test_a_line_says_how_a_job_stands(shown: Entry, said: str) -> None:
    assert line(shown) == f"{shown.job.name}: {said}"


def test_jobs_are_counted_by_word() -> None:
    assert counts(MIXED) == "1 done, 1 failed, 1 silent, 1 running, 1 waiting (5 jobs)"
    assert counts([]) == "no jobs"


def test_elsewhere_than_on_a_terminal_each_change_is_a_line() -> None:
    stream = io.StringIO()
    before = [entry(0, "waiting"), entry(1, "done")]
    running = [entry(0, "running", epoch=1), entry(1, "done")]
    later = [entry(0, "running", epoch=2), entry(1, "done")]
    again = [entry(0, "running", epoch=2, attempt=2), entry(1, "done")]
    with watching(stream) as show:
        for entries in (before, before, running, later, again):
            show(entries)
    assert stream.getvalue().splitlines() == [
        "1 done, 1 waiting (2 jobs)",
        "tiny/seed0/baseline: running, epoch 1, node7, attempt 1 [1 of 2 done]",
        "tiny/seed0/baseline: running, epoch 2, node7, attempt 2 [1 of 2 done]",
    ]


def test_a_thousand_jobs_fit_on_a_screen() -> None:
    stream = Terminal()
    many = [entry(n, "running", stage="training") for n in range(30)]
    many += [entry(n, "done", value=0.4) for n in range(30, 1000)]
    print_entries(many, stream)
    shown = stream.rows()
    assert len(shown) <= 24
    assert "970 done, 30 running (1,000 jobs), 17 more than fit here" in shown[-1]


def test_a_table_shows_what_is_under_way_first_and_what_ended_last() -> None:
    stream = Terminal()
    print_entries([entry(n, "done", value=0.4) for n in range(10, 20)] + MIXED, stream)
    shown = stream.rows()
    assert shown[0].split() == ["run", "state", "epoch", "mAP", "left", "where"]
    assert [row.split()[0].split("/")[1] for row in shown[1:-1]] == [
        *("seed1", "seed3", "seed2"),
        *("seed19", "seed18", "seed17", "seed16", "seed15"),
    ]
    assert re.fullmatch(r"tiny/\S+ +training +3/10 +0.312 +1 min 35 s +node7, H100 *", shown[1])
    assert "out of memory: try --batch 8" in shown[3]


def test_no_name_moves_the_cursor_or_is_taken_for_markup() -> None:
    stream = Terminal()
    print_entries([entry(0, "failed", error="\x1b[2J[red]x[/red]")], stream)
    assert r"\x1b[2J[red]x[/red]" in stream.getvalue()


def test_a_live_table_is_gone_when_all_is_done() -> None:
    stream = Terminal()
    with watching(stream) as show:
        show(MIXED)
        show(MIXED[:1])
    assert "seed1" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


def test_without_a_terminal_a_status_is_lines() -> None:
    stream = io.StringIO()
    print_entries(MIXED, stream)
    assert [said.split(":")[0] for said in stream.getvalue().splitlines()] == [
        "tiny/seed1/baseline",
        "tiny/seed2/baseline",
        "tiny/seed3/baseline",
        "1 done, 1 failed, 1 silent, 1 running, 1 waiting (5 jobs)",
    ]
