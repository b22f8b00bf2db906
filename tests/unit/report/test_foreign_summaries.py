"""Summaries of strangers, on their way from a folder into every report.

Whatever they hold, a line says why one cannot be used, the others get their report, and nothing of
it takes long, fills the memory, moves a cursor or becomes markup.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qatval.analysis import gate
from qatval.analysis.comparison import compare
from qatval.analysis.runs import collect
from qatval.cli.main import main
from qatval.core import summary as summaries
from qatval.core.schema import published
from qatval.core.summary import SUMMARY_NAME
from qatval.report.comparison_markdown import render_comparison
from qatval.report.html import render_html
from qatval.report.terminal import terminal_table
from qatval.testing import as_json, build_deployment, build_summary, merged, reduced_to_required

METHODS = ("baseline", "ema", "ema+qc", "dampen+ema+qc", "bn", "ptq", "fp32", "fp32+ema")
DOCUMENTS = [as_json(build_summary(method, seed)) for method in METHODS for seed in (0, 1)]
DOCUMENTS += [
    as_json(build_summary("ema", 2, error="interrupted")),
    *(
        as_json(build_summary("ema", seed, changes={"deployment": build_deployment()}))
        for seed in (4, 5)
    ),
    as_json(reduced_to_required(build_summary("ema+qc", 3))),
]

HOSTILE = "\x1b[2J\nyolo10m gate: open\r\u202e`|![x](http://x/)<img src=x>\u2028"
NUMBERS = [0, 1, -1, 2, 9, 0.5, -0.1, 1e49, -1e49, 1e51, 1e308, 5e-324, 2**63, 10**40, 10**300]
TEXTS = ["", "-", "fp32", "ema", "ema+qc", "ema+ema", "+", "ptq", "w2a8", "yolo10s", "incomplete"]
TEXTS += ["completed-failed", "2.0", "2026-02-30T12:00:00Z", "/dev/zero", "{0} %s", HOSTILE]
OTHERS = [None, True, [], {}, [[]], [None], {"name": "x"}, {"a": {"b": [1, 2]}}]


def change(document: Any, draw: random.Random) -> None:
    """Remove, repeat or replace a value somewhere in a document, mostly by one of its type."""
    holder = document
    while True:
        key = draw.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
        value = holder[key]
        if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
            break
        holder = value
    what = draw.random()
    if what < 0.1:
        del holder[key]
    elif what < 0.15 and isinstance(holder, list):
        holder += copy.deepcopy(holder)
    elif what < 0.25:
        equal(document, draw.choice(["epoch", "seed", "imgsz", "kl_mean", "train/box_loss"]), draw)
    elif what < 0.9 and isinstance(value, float | int):
        holder[key] = draw.choice(NUMBERS)
    elif what < 0.9 and isinstance(value, str):
        holder[key] = draw.choice(TEXTS)
    else:
        holder[key] = copy.deepcopy(draw.choice([*NUMBERS, *TEXTS, *OTHERS]))


def equal(document: Any, name: str, draw: random.Random) -> None:
    """Give every number of one name one value."""
    value = draw.choice(NUMBERS)
    stack = [document]
    while stack:
        holder = stack.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, inner in list(items):
            if isinstance(inner, dict | list):
                stack.append(inner)
            elif key == name:
                holder[key] = value


def mutated(draw: random.Random) -> bytes:
    """Return a summary with a few changes in what it says, or in its bytes."""
    document = copy.deepcopy(draw.choice(DOCUMENTS))
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        change(document, draw)
    content = bytearray(json.dumps(document).encode())
    if draw.random() < 0.3:
        for _ in range(draw.choice((1, 1, 2, 20))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.05:
        del content[draw.randrange(len(content)) :]
    return bytes(content)


def write(root: Path, content: bytes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / SUMMARY_NAME).write_bytes(content)
    return root


def reports(paths: Sequence[Path]) -> dict[str, str]:
    """Return every text that a comparison of the runs below some paths becomes."""
    runs, unreadable = collect(paths)
    comparison = compare(runs, unreadable)
    published(comparison, "comparison")  # raises if it breaks its schema
    return {
        "terminal": terminal_table(comparison),
        "gate": "\n".join(gate.decide(runs).reasons),
        "markdown": render_comparison(comparison),
        "html": render_html(comparison, runs),
    }


@settings(
    max_examples=3500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_a_summary_is_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    root = write(tmp_path, mutated(random.Random(seed)))
    runs, unreadable = collect([root])
    assert len(runs) + len(unreadable) == 1
    for item in unreadable:
        assert item.reason.isprintable()
        assert len(item.reason) < 500 + len(str(root))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_no_summary_costs_the_others_their_report(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    write(tmp_path / "good", json.dumps(DOCUMENTS[0]).encode())
    for number in range(3):
        write(tmp_path / str(number), mutated(draw))
    said = reports([tmp_path])
    # by its id, or as a copy of what one of the others says that it is
    of_it = (DOCUMENTS[0]["run_id"], f"{tmp_path / 'good'}: same ")
    assert any(text in said["markdown"] for text in of_it)
    assert all(line.isprintable() for line in said["terminal"].splitlines())


EXTREMES: dict[str, Any] = {
    "huge": {"metrics": {"best_value": 1e308, "final_value": 1e308}},
    "tiny": {"metrics": {"best_value": 5e-324, "fp32_value": 5e-324}},
    "huge gamma": {"method": {"qc": {"changes": {"x": {"gamma_max": 1e49}}}}},
    "no changes": {"method": {"qc": {"changes": None}}},
    "odd changes": {"method": {"qc": {"changes": {"": 7}}}},
    "late epoch": {"history": [{"epoch": 10**40, "value": 0.1}]},
    "equal losses": {
        "history": [{"epoch": 1, "value": 0.1, "metrics": {"train/x": 1e49, "val/x": 1e49}}]
    },
    "one layer's drift": {
        "batchnorm": {"layers": [{"name": "x", "kl_mean": 1e49, "kl_max": 1e49}]}
    },
    "seed": {"training": {"seed": -(10**45)}},
    "deep": {"evaluation": {"x": json.loads("[" * 60 + "]" * 60)}},
}


@pytest.mark.parametrize("changes", EXTREMES.values(), ids=EXTREMES)
def test_extreme_values_are_reported_or_refused(tmp_path: Path, changes: Any) -> None:
    for seed in (0, 1, 2):
        write(tmp_path / f"good {seed}", json.dumps(as_json(build_summary("ema", seed))).encode())
        bad = merged(as_json(build_summary("ema+qc", seed)), changes)
        write(tmp_path / f"bad {seed}", json.dumps(bad).encode())
    assert "yolo10n-ema-smoke-seed0" in reports([tmp_path])["html"]


GOOD = json.dumps(DOCUMENTS[0])
REFUSED: dict[str, tuple[bytes, str]] = {
    "digits": (GOOD.replace('"seed": 0', '"seed": ' + "1" * 5000).encode(), "out of range"),
    "nested": (b"[" * 50_000, "too deeply nested"),
    "nested whole": (b'{"a":' * 900 + b"1" + b"}" * 900, "nested more than 64 deep"),
    "surrogate": (GOOD.replace("yolo10n", "\\ud800").encode(), "is not valid JSON"),
    "Latin-1": (GOOD.replace("yolo10n", "ä").encode("latin-1"), "byte"),
    "UTF-16": (GOOD.encode("utf-16"), "is not valid JSON"),
    "NaN": (GOOD.replace("0.682", "NaN").encode(), "is not valid JSON"),
    "huge": (GOOD.replace("0.682", "1e308").encode(), "a number above 1e+50"),
    "infinite": (GOOD.replace("0.682", "1e999").encode(), "out of range"),
    "negative": (GOOD.replace('"training": 43.0', '"training": -1').encode(), ">= 0.0"),
    "empty": (b"", "truncated"),
    "large": (b" " * 2**22 + GOOD.encode(), "expected what a run wrote, of at most 4,194,304"),
    "long": (GOOD.replace("w4a16", "x" * 10_000).encode(), "is not a run summary"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_why_a_summary_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path / "bad", content)
    write(tmp_path / "good", GOOD.encode())
    runs, (refused,) = collect([tmp_path])
    assert len(runs) == 1
    assert reason in refused.reason
    assert refused.reason.isprintable()
    assert len(refused.reason) < 500 + len(str(tmp_path))


def test_a_byte_order_mark_is_no_reason(tmp_path: Path) -> None:
    (run,), _ = collect([write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())])
    assert run.run_id == DOCUMENTS[0]["run_id"]


def in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


ODD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "FIFO": (os.mkfifo, "no regular file"),
    "folder": (Path.mkdir, "Is a directory"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "circle": (in_a_circle, "Too many levels of symbolic links"),
    "dangling": (lambda path: path.symlink_to("gone"), "No such file"),
}


@pytest.mark.parametrize(("make", "reason"), ODD_FILES.values(), ids=ODD_FILES)
def test_what_is_called_a_summary_and_is_no_file(tmp_path: Path, make: Any, reason: str) -> None:
    write(tmp_path / "good", GOOD.encode())
    (tmp_path / "bad").mkdir()
    make(tmp_path / "bad" / SUMMARY_NAME)
    runs, (refused,) = collect([tmp_path])
    assert len(runs) == 1
    assert reason in refused.reason


def test_a_path_that_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    _, (refused,) = collect([tmp_path / "fifo"])
    assert refused.reason.endswith("neither a file nor a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "good", GOOD.encode())
    write(tmp_path / "closed", GOOD.encode())
    (tmp_path / "closed").chmod(0)
    runs, (refused,) = collect([tmp_path])
    (tmp_path / "closed").chmod(0o700)
    assert len(runs) == 1
    assert refused.path == tmp_path / "closed"


@pytest.mark.parametrize("hidden", [".training-x", ".qatval-old"])
def test_hidden_folders_hold_no_runs(tmp_path: Path, hidden: str) -> None:
    write(tmp_path / "good", GOOD.encode())
    write(tmp_path / hidden / "run", json.dumps(DOCUMENTS[2]).encode())
    runs, unreadable = collect([tmp_path])
    assert [run.root.name for run in runs] == ["good"]
    assert not unreadable


HOSTILE_NAMES: dict[str, Any] = {
    "run_id": HOSTILE,
    "model": {"variant": HOSTILE},
    "method": {"variant": HOSTILE},
    "dataset": {"name": HOSTILE},
    "training": {"profile": HOSTILE},
    "warnings": [HOSTILE],
    "failed_checks": [{"name": HOSTILE, "detail": HOSTILE}],
    "evaluation": {HOSTILE: HOSTILE},
    "environment": {"torch": HOSTILE, "cpu": HOSTILE},
    "deployment": build_deployment(executed={HOSTILE: 90, "int8": 4}),
}
HOSTILE_NAMES["deployment"]["exported"]["file"] = HOSTILE
HOSTILE_NAMES["deployment"]["exported"]["runtimes"][0]["version"] = HOSTILE


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Runs whose every name is hostile, one incomplete, one unreadable, in a hostile folder."""
    folder = tmp_path / "runs"
    for seed in (0, 1):
        document = merged(as_json(build_summary("ema+qc", seed)), HOSTILE_NAMES)
        document["run_id"] += str(seed)
        document["evaluation"][f"seed {seed}{HOSTILE}"] = seed
        write(folder / f"\x1b[31m\n{seed}", json.dumps(document).encode())
    error = {"run_id": "stopped", "error": {"message": HOSTILE, "stage": HOSTILE}}
    stopped = merged(as_json(build_summary("ema", 0, error="x")), error)
    write(folder / "stopped", json.dumps(stopped).encode())
    write(folder / "unreadable", json.dumps({"schema_version": f"1{HOSTILE}"}).encode())
    plain = merged(as_json(build_summary("ema+qc", 3)), {"run_id": HOSTILE, "status": "incomplete"})
    write(folder / "named", json.dumps(plain | {"error": {"message": "x"}}).encode())
    return folder


def test_nothing_hostile_reaches_the_terminal(hostile: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "all.json")
    assert main(["gate", str(hostile), "--count-incomplete"]) == 3
    assert main(["summarize", str(hostile), "--out-path", out, "--strict"]) == 1
    assert main(["verify", str(hostile)]) == 1
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).split("\n")
    assert all(line.isprintable() for line in lines)
    assert "yolo10m gate: closed" in lines
    assert not any(line.startswith("yolo10m gate: open") for line in lines)


def test_nothing_hostile_becomes_markdown(hostile: Path) -> None:
    text = reports([hostile])["markdown"]
    assert all(line.isprintable() for line in text.split("\n"))
    outside = re.sub(r"(?<!\\)(`+).+?(?<!`)\1(?!`)", "", text)  # nothing is markup within code
    assert "gate: open" in outside
    assert not re.search(r"(?<!\\)\]\(|<img|http://|(?<!\\)`", outside)
    tables = [line for line in outside.split("\n") if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert widths == {8, 12, 13}


def test_nothing_hostile_becomes_html(hostile: Path) -> None:
    page = reports([hostile])["html"]
    assert "<img" not in page
    assert not re.search("[\x1b\u202e\u2028\r]", page)


def test_the_limit_leaves_room_for_what_runs_write() -> None:
    assert len(GOOD) * 20 < summaries._MOST_BYTES
